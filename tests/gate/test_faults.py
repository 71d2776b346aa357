"""What can break under a run. Each fault: what was lost is named, what was measured is kept, no baseline is touched."""

import os
import signal
import textwrap

import pytest
import torch

from kernelgate import processes

pytestmark = pytest.mark.correctness

# The fault strikes in the second process; the benchmarks before and after it are sound.
STRUCK = """
    import errno
    import os
    import signal
    import time
    from pathlib import Path

    import clock


    def test_before(benchmark):
        benchmark(clock.work)


    def test_struck(benchmark):
        benchmark(clock.work)
        if os.environ.get("STRIKE") and clock.process == 2:
            FAULT


    def test_after(benchmark):
        benchmark(clock.work)
"""


@pytest.fixture
def stricken(project):
    """Compare with a baseline while a fault strikes; returns the result once the baseline has been looked at."""

    def compare(fault, *arguments):
        prepare(project, fault)
        before = contents(project)
        result = project.run("--benchmark-compare", "--gate-processes=3", *arguments)
        assert contents(project) == before
        assert result.ret != 0
        return result

    return compare


def prepare(project, fault):
    """A baseline, and the fault waiting for the second process of the next run."""
    project.pytester.makepyfile(test_it=STRUCK.replace("FAULT", fault))
    project.record("--gate-processes=1")
    (project.path / "started").unlink()
    project.environment(STRIKE=1)


def contents(project):
    """Every file below the folder of the baselines, to the byte."""
    folder = project.path / "perf_baselines"
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kept(project):
    """Node ids by number of the process that has measured them."""
    found = {}
    for path in sorted((project.path / ".kernelgate" / "runs").glob("current-*.jsonl")):
        found[path.stem] = [
            event["nodeid"].partition("::")[2] for event in processes.events(path) if event["event"] == "observation"
        ]
    return found


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process that measured it ended with killed by SIGKILL"),
        ("time.sleep(60)", "the process that measured it ended with killed after 5 s (--gate-timeout)"),
        ("raise MemoryError", "MemoryError"),
        (
            "raise RuntimeError('CUDA error: no CUDA-capable device is detected')",
            "RuntimeError: CUDA error: no CUDA-capable device is detected",
        ),
    ],
    ids=["killed", "hang", "out of memory", "vanished GPU"],
)
def test_what_breaks_in_one_process_costs_one_benchmark(stricken, fault, lost):
    result = stricken(fault, "--gate-timeout=5")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "kernelgate: process 2 of 3: * of 3 benchmarks *",
            "kernelgate: process 3 of 3: 2 of 2 benchmarks *",
            lost,
            "1 FAILED, 2 SAME *",
            "FAILED test_it.py::test_struck - Failed: *",
        ]
    )


@pytest.mark.skipif(
    torch.cuda.is_available() and "PYTEST_XDIST_WORKER" in os.environ, reason="other workers have the GPU open"
)
def test_a_device_out_of_memory_costs_one_benchmark(stricken):
    result = stricken("import torch; raise torch.cuda.OutOfMemoryError('CUDA out of memory.')")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["torch.OutOfMemoryError: CUDA out of memory.", "1 FAILED, 2 SAME *"])


def test_ctrl_c_keeps_what_was_measured(project):
    prepare(project, "Path('asleep.xml').touch(); time.sleep(60)")
    before = contents(project)
    process = project.start("--benchmark-compare", "--gate-processes=3")
    project.wait_for("asleep.xml")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == pytest.ExitCode.INTERRUPTED
    assert contents(project) == before
    assert "no tests ran" in (project.path / "stdout").read_text()
    assert kept(project) == {
        "current-000": ["test_before", "test_struck", "test_after"],
        "current-001": ["test_before"],
    }


class TestFullDisk:
    def append_to_conftest(self, project, text):
        with (project.path / "conftest.py").open("a") as stream:
            stream.write(textwrap.dedent(text))

    def test_in_a_process_that_measures(self, project, stricken):
        """A limit to the size of files cuts its first result off in the middle."""
        self.append_to_conftest(
            project,
            """
            import os
            import resource
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails with an OSError


            def pytest_runtest_setup(item):
                import clock

                if os.environ.get("STRIKE") and clock.process == 2:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
            """,
        )
        result = stricken("pass")
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 2 of 3: 0 of 3 benchmarks *",
                "*results cannot be written: *File too large*",
                "the process that measured it ended with exit status 2",
                "1 FAILED, 2 SAME *",
            ]
        )
        found = kept(project)
        assert found.pop("current-001") == []
        assert sorted(map(len, found.values())) == [2, 3]

    def test_in_the_process_that_asks(self, project, stricken):
        self.append_to_conftest(
            project,
            """
            import errno
            import os
            from kernelgate import processes

            if os.environ.get("STRIKE"):
                whole = processes.write_request

                def write_request(results, benchmarks):
                    if results.stem.endswith("1"):
                        raise OSError(errno.ENOSPC, "No space left on device", str(results))
                    whole(results, benchmarks)

                processes.write_request = write_request
            """,
        )
        result = stricken("pass")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.assert_outcomes(errors=3)
        result.stdout.fnmatch_lines("not measured: process 2 of 3: *No space left on device*")
        assert kept(project) == {"current-000": ["test_before", "test_struck", "test_after"]}


def test_a_corrupt_baseline_is_named_before_anything_is_measured(project):
    path = project.record("--gate-processes=1")
    for damage in (lambda text: text[: len(text) // 2], lambda text: text.replace("0.00", "0.01", 1)):
        whole = path.read_text()
        path.write_text(damage(whole))
        before = contents(project)
        result = project.run("--benchmark-compare")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(f"ERROR: {path}: *")
        assert "process 1 of" not in result.stdout.str()
        assert contents(project) == before
        path.write_text(whole)


def test_recording_after_a_fault_adds_no_baseline(project):
    prepare(project, "os.kill(os.getpid(), signal.SIGKILL)")
    project.commit()
    before = contents(project)
    result = project.run("--gate-record=again", "--gate-processes=3")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("NOT RECORDED: a test failed*")
    assert contents(project) == before


def test_a_busy_machine_decides_nothing_about_times(project):
    """Only the wall's clock is disturbed by other programs, so it is the one that counts here."""
    project.record("--gate-processes=1")
    with (project.path / "conftest.py").open("a") as stream:
        stream.write(
            "\nfrom kernelgate import cpu, metrics"
            "\ncpu.LoadMeter.read = lambda self: {metrics.LOAD: metrics.metric(0.9, '1', 'info')}\n"
        )
    before = contents(project)
    result = project.run("--benchmark-compare", "--gate-processes=2", "--benchmark-timer=time.perf_counter", "-rs")
    assert result.ret == 12
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        "SKIPPED * ENV: other programs used 90.0 % of the processors while it was measured (tolerance 25.0 %)"
    )
    assert contents(project) == before


def put_in_conftest(project, text):
    with (project.path / "conftest.py").open("a") as stream:
        stream.write(textwrap.dedent(text))


def test_no_baseline_is_made_on_a_busy_machine(project):
    put_in_conftest(
        project,
        """
        from kernelgate import cpu, metrics
        cpu.LoadMeter.read = lambda self: {metrics.LOAD: metrics.metric(0.9, "1", "info")}
        """,
    )
    project.commit()
    before = contents(project)
    result = project.run("--gate-record=first", "--gate-processes=2", "--benchmark-timer=time.perf_counter", "-rs")
    assert result.ret == 12
    result.stdout.fnmatch_lines(["NOT RECORDED: *", "SKIPPED * ENV: other programs used 90.0 %*"])
    assert contents(project) == before


SLOWED = """
    import pytest
    from kernelgate import metrics

    class Meter:
        def slowed(self, count):
            self.count = count
            return [index in {spoiled} for index in range(count)]

        def read(self, slowed):
            return {{
                metrics.SLOWED: metrics.metric(slowed, "1", "info"),
                metrics.FOREIGN: metrics.metric({programs}, "programs", "info"),
            }}

    @pytest.fixture(autouse=True)
    def meter(benchmark):
        benchmark._state = Meter()
    """


def test_samples_under_a_slowdown_are_dropped_and_counted(project):
    """The first of three rounds is a thousand times too long, and the GPU had slowed down."""
    project.pytester.makepyfile(
        test_it="""
        import clock

        def test_work(benchmark):
            seconds = iter([1e-3, 1.0])
            benchmark.pedantic(lambda: clock.work(next(seconds, 1e-3)), rounds=4)
            assert benchmark.stats.stats.max < 0.01
            assert len(benchmark.stats.stats.data) == 3
            assert benchmark.observation.metrics["slowed_samples"].typical == 0.25
            assert len(benchmark.observation.samples) == 3
        """
    )
    put_in_conftest(project, SLOWED.format(spoiled={1}, programs=0))
    project.run("--gate-processes=1").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("spoiled", "programs", "reason"),
    [
        (range(1000), 0, "the GPU slowed down, for heat or by its hardware, during 100 % of the samples *"),
        ((), 2, "expected the GPU for itself, found it open in 2 other programs"),
    ],
    ids=["hot", "shared"],
)
def test_a_gpu_in_no_state_to_be_timed_decides_nothing(project, spoiled, programs, reason):
    project.record("--gate-processes=2")
    put_in_conftest(project, SLOWED.format(spoiled=spoiled, programs=programs))
    before = contents(project)
    result = project.run("--benchmark-compare", "--gate-processes=2", "-rs")
    assert result.ret == 12
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(f"SKIPPED * ENV: {reason}")
    assert contents(project) == before
