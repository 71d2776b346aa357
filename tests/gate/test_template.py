"""`gate_fork = always`: processes forked from one that has collected everything, on a CPU, where a fork shows less."""

import os
import signal

import pytest

pytestmark = pytest.mark.correctness
psutil = pytest.importorskip("psutil", reason="finds what is left running")

# Forks share the process number that the clock took when it was imported, and tell each other apart by their files.
FORKED = """
    import os
    import signal
    import time
    from pathlib import Path

    import clock


    def number():
        return len(list(Path.cwd().glob("fork_*")))


    def test_before(benchmark):
        Path(f"fork_{os.getpid()}").write_text(f"{os.getppid()} {os.environ.get('PYTORCH_NVML_BASED_CUDA_CHECK')}")
        print(f"output of fork {os.getpid()}")
        benchmark(clock.work)


    def test_work(benchmark):
        benchmark(clock.work)
        if number() == 2:
            DEED
"""


@pytest.fixture
def project(project):
    project.configure(gate_fork="always")
    return project


def forked(project, deed="pass"):
    project.pytester.makepyfile(test_it=FORKED.replace("DEED", deed))


def forks(project):
    """Parent and environment of each fork, by its pid."""
    return {int(path.name.removeprefix("fork_")): path.read_text().split() for path in project.path.glob("fork_*")}


def left_running(project):
    """Processes that still run in the project's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            elsewhere = process.cwd() != str(project.path) or process.status() == psutil.STATUS_ZOMBIE
            if not elsewhere and process.pid != os.getpid():
                found.append(process.cmdline())
        except psutil.Error:  # it ended, or is not ours to look at
            continue
    return found


class TestForks:
    def test_every_process_is_a_fork_of_one_template(self, project):
        forked(project)
        result = project.run("--gate-processes=3")
        assert result.ret == 0
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 1 of 3: 2 of 2 benchmarks in * s, exit status 0 *",
                "kernelgate: process 2 of 3: 2 of 2 benchmarks in * s, exit status 0 *",
                "kernelgate: process 3 of 3: 2 of 2 benchmarks in * s, exit status 0 *",
            ]
        )
        found = forks(project)
        assert len(found) == 3
        # Imported once by the process that asserts and once by the template.
        assert (project.path / "started").read_text() == "xx"
        (template,) = {parent for parent, _ in found.values()}
        assert int(template) not in found
        # Asked of CUDA, whether there is a GPU would leave nothing that can be forked.
        assert {variable for _, variable in found.values()} == {"1"}
        assert left_running(project) == []

    def test_forks_are_not_made_on_a_cpu_unless_asked_for(self, project):
        project.configure(gate_fork="auto")
        forked(project)
        assert project.run("--gate-processes=2").ret == 0
        assert (project.path / "started").read_text() == "xxx"

    def test_a_failure_shows_its_own_output_alone(self, project):
        forked(project, "assert False, 'only in the second'")
        result = project.run("--gate-processes=3")
        assert result.ret == 1
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 2 of 3: 1 of 2 benchmarks in * s, exit status 1 *",
                "kernelgate: output of process 2 of 3:",
                "E *AssertionError: only in the second",
                "kernelgate: process 3 of 3: 1 of 1 benchmarks in * s, exit status 0 *",
                "FAILED test_it.py::test_work - Failed: AssertionError: only in the second*",
            ]
        )
        # The template's header, and the other forks' output, are not part of it.
        shown = result.stdout.str().partition("output of process 2 of 3:")[2].partition("process 3 of 3")[0]
        assert shown.count("= FAILURES =") == 1
        assert "test session starts" not in shown

    @pytest.mark.parametrize(
        ("deed", "status"),
        [
            ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
            ("time.sleep(60)", "killed after 4 s (--gate-timeout)"),
        ],
        ids=["killed", "hanging"],
    )
    def test_a_lost_fork_is_named_and_the_next_one_works(self, project, deed, status):
        forked(project, deed)
        result = project.run("--gate-processes=3", "--gate-timeout=4")
        assert result.ret == 1
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(
            [
                f"kernelgate: process 2 of 3: 1 of 2 benchmarks in * s, {status} *",
                "kernelgate: process 3 of 3: 1 of 1 benchmarks in * s, exit status 0 *",
                f"the process that measured it ended with {status}",
            ]
        )
        assert left_running(project) == []

    def test_a_lost_template_costs_its_fork_and_is_replaced(self, project):
        forked(project, "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
        result = project.run("--gate-processes=3")
        assert result.ret == 1
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 2 of 3: 1 of 2 benchmarks in * s, its template lost *",
                "kernelgate: process 3 of 3: 1 of 1 benchmarks in * s, exit status 0 *",
                "the process that measured it ended with its template lost",
            ]
        )
        assert left_running(project) == []

    def test_a_template_lost_between_two_forks_is_named(self, project):
        forked(project)
        with (project.path / "conftest.py").open("a") as stream:
            stream.write(
                "\nimport os, signal"
                "\ndef pytest_unconfigure():"
                "\n    if os.path.exists(f'fork_{os.getpid()}'): os.kill(os.getppid(), signal.SIGKILL)\n"
            )
        result = project.run("--gate-processes=2")
        assert result.ret == 1
        result.stdout.fnmatch_lines("not measured: process 1 of 2 ended with its template lost")
        assert left_running(project) == []


class TestFallback:
    IMPORTED_BY_THE_TEMPLATE = """
    import os
    import sys
    import time

    import clock

    if any(argument.startswith("--gate-template") for argument in sys.argv):
        DEED

    def test_work(benchmark):
        benchmark(clock.work)
    """

    @pytest.mark.parametrize(
        ("deed", "why"),
        [
            ("raise ImportError('not today')", "ended:*E *ImportError: not today"),
            ("os._exit(3)", "ended:*"),
            ("time.sleep(60)", "did not answer in time:*"),
        ],
        ids=["collection error", "exit", "hanging"],
    )
    def test_a_template_that_cannot_start_leaves_fresh_processes(self, project, deed, why):
        project.pytester.makepyfile(test_it=self.IMPORTED_BY_THE_TEMPLATE.replace("DEED", deed))
        result = project.run("--gate-processes=2", "--gate-timeout=4")
        assert result.ret == 0
        reason, *lines = why.split("*", 1)
        result.stdout.fnmatch_lines(
            [
                f"kernelgate: every process starts from nothing: the process to fork from {reason}",
                *(f"*{line}" for line in lines if line),
                "kernelgate: process 1 of 2: 1 of 1 benchmarks *",
                "kernelgate: process 2 of 2: 1 of 1 benchmarks *",
            ]
        )
        assert result.stdout.str().count("starts from nothing") == 1
        assert left_running(project) == []

    def test_a_template_that_touched_the_gpu_is_not_forked(self, project):
        """Torch is a stand-in: what counts is whether CUDA is initialised."""
        project.pytester.makepyfile(
            torch="""
            class cuda:
                is_initialized = staticmethod(lambda: True)
                is_available = staticmethod(lambda: False)

            class version:
                cuda = None

            get_num_threads = lambda: 1
            """,
            test_it="""
            import clock
            import torch

            def test_work(benchmark):
                benchmark(clock.work)
            """,
        )
        result = project.run("--gate-processes=2")
        result.stdout.fnmatch_lines(
            "kernelgate: every process starts from nothing: the process to fork from touched CUDA while it collected "
            "tests, so no process can be forked from it (gate_fork = never)"
        )


class TestInterrupt:
    @pytest.mark.parametrize("fork", ["always", "never"])
    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
    def test_an_interrupted_run_leaves_nothing_running(self, project, fork, sent):
        project.configure(gate_fork=fork)
        forked(project, "(Path.cwd() / 'asleep').touch(); time.sleep(60)")
        process = project.start("--gate-processes=3")
        project.wait_for("asleep")
        descendants = psutil.Process(process.pid).children(recursive=True)
        assert descendants
        process.send_signal(sent)
        assert process.wait(timeout=20) == pytest.ExitCode.INTERRUPTED
        _, alive = psutil.wait_procs(descendants, timeout=5)
        assert alive == []
