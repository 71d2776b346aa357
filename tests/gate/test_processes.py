import json

import pytest

from kernelgate import processes

pytestmark = pytest.mark.correctness

MISBEHAVING = """
    import os
    import signal
    import time

    import clock


    def test_before(benchmark):
        benchmark(clock.work)
        assert not os.environ.get("FAIL")


    def test_work(benchmark):
        benchmark(clock.work)
        assert not os.environ.get("FAIL")
        if clock.process == 1:
            {deed}


    def test_ordinary():
        pass
"""


def misbehave(project, deed):
    project.pytester.makepyfile(test_it=MISBEHAVING.format(deed=deed))


class TestChildren:
    def test_each_process_is_one_observation(self, project):
        project.environment(JITTER=0.01)
        result = project.run("--gate-processes=3", "--benchmark-json=out.json")
        assert result.ret == 0
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 1 of 3: 1 of 1 benchmarks in * s, exit status 0 · ███░░░░░░░ * s left",
                "kernelgate: process 2 of 3: 1 of 1 benchmarks in * s, exit status 0 · ███████░░░ * s left",
                "kernelgate: process 3 of 3: 1 of 1 benchmarks in * s, exit status 0 · ██████████ 0 s left",
                "1 measured*3 processes*",
            ]
        )
        (benchmark,) = json.loads((project.path / "out.json").read_text())["benchmarks"]
        # The process that asserts the verdict, which has number 0, would be the quickest.
        assert benchmark["extra_info"]["metrics"]["latency_s"]["values"] == pytest.approx(
            [1e-3, 1.01e-3, 0.99e-3], rel=1e-4
        )
        assert benchmark["stats"]["median"] == pytest.approx(1e-3, rel=1e-4)

    def test_one_process_is_the_default_and_four_for_a_verdict(self, project):
        assert "process 1 of" not in project.run().stdout.str()
        assert "process 1 of 4" in project.run("--benchmark-compare").stdout.str()

    def test_tests_that_measure_nothing_run_here(self, project):
        result = project.run("--gate-processes=2", "--benchmark-disable")
        result.assert_outcomes(passed=1)
        assert "process 1 of" not in result.stdout.str()

    def test_the_process_that_asserts_does_not_measure(self, project):
        project.pytester.makepyfile(
            test_it="""
            from pathlib import Path

            import clock

            def test_work(benchmark):
                Path(f"ran_in_{clock.process}").touch()
                benchmark(clock.work)
            """
        )
        assert project.run("--gate-processes=2").ret == 0
        assert {path.name for path in project.path.glob("ran_in_*")} == {"ran_in_1", "ran_in_2"}

    def test_what_is_decided_is_not_measured_again(self, project):
        """What is the same, after four processes. What is slower is looked at once more."""
        project.pytester.makepyfile(
            test_it="""
            import os

            import clock

            def test_same(benchmark):
                benchmark(clock.work)

            def test_slower(benchmark):
                benchmark(clock.work, 1e-3 * float(os.environ.get("PLANT", "1")))
            """
        )
        project.record()
        project.environment(PLANT=2)
        result = project.run("--benchmark-compare", "--gate-processes=5")
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(
            ["kernelgate: process 4 of 5: 2 of 2 benchmarks*", "kernelgate: process 5 of 5: 1 of 1 benchmarks*"]
        )
        project.environment(PLANT=1)
        result = project.run("--benchmark-compare", "--gate-processes=5")
        assert result.ret == 0
        assert "process 5 of 5" not in result.stdout.str()

    def test_the_ini_key_sets_the_default(self, project):
        project.configure(gate_processes=2)
        assert "process 1 of 2" in project.run().stdout.str()
        assert "process 1 of" not in project.run("--gate-processes=1").stdout.str()

    def test_children_measure_the_selected_benchmarks_and_nothing_else(self, project):
        project.pytester.makepyfile(test_it=MISBEHAVING.format(deed="pass"))
        result = project.run("--gate-processes=2", "-k", "before or ordinary")
        result.assert_outcomes(passed=2, deselected=1)
        result.stdout.fnmatch_lines("kernelgate: process 1 of 2: 1 of 1 benchmarks*")

    @pytest.mark.parametrize(("addopts", "arguments"), [("", ["perf", "other", "-m", "perf"]), ("perf -m perf", [])])
    def test_children_import_the_files_that_hold_benchmarks_and_no_other(self, project, addopts, arguments):
        """However the files were named, and whatever else is called as they are."""
        for name in ("perf", "other"):
            folder = project.path / name
            folder.mkdir()
            (folder / f"test_{name}.py").write_text(
                "import os, clock, pytest\n"
                "from pathlib import Path\n"
                "Path(f'imported_{Path(__file__).stem}_{os.getpid()}').touch()\n"
                "@pytest.mark.perf\n"
                f"def test_{name}({'benchmark' if name == 'perf' else ''}):\n"
                f"    {'benchmark(clock.work)' if name == 'perf' else 'pass'}\n"
            )
        project.configure(addopts=addopts)
        result = project.run("--gate-processes=2", *arguments)
        assert result.ret == 0
        assert len(list(project.path.glob("imported_test_perf_*"))) == 3
        assert len(list(project.path.glob("imported_test_other_*"))) == (1 if arguments else 0)

    def test_children_write_no_reports(self, project):
        misbehave(project, "raise ValueError")
        written = ("--junitxml=junit.xml", "--benchmark-json=out.json", "--benchmark-save=run", "-p", "cacheprovider")
        project.run("--gate-processes=2", *written)
        assert 'tests="3"' in (project.path / "junit.xml").read_text()
        assert len(list((project.path / ".benchmarks").rglob("*.json"))) == 1
        failed = json.loads((project.path / ".pytest_cache" / "v" / "cache" / "lastfailed").read_text())
        assert list(failed) == ["test_it.py::test_work"]


class TestResults:
    def test_a_line_that_was_cut_off_is_no_event(self, tmp_path):
        """As a killed process leaves it, or a full disk, with what its parent has to say behind it."""
        results = tmp_path / "results"
        processes.write_request(results, ["a", "b"])
        processes.append(results, event="start", nodeid="a")
        with results.open("a") as stream:
            stream.write('{"event": "observa')
        assert [event["event"] for event in processes.events(results)] == ["start"]
        processes.append(results, event="end", exit_status="killed by SIGKILL", seconds=1.0)
        processes.append(results, event="start", nodeid="b")
        assert [event["event"] for event in processes.events(results)] == ["start", "start"]

    @pytest.mark.parametrize("text", [None, ""])
    def test_a_process_that_never_began_has_none(self, tmp_path, text):
        if text is not None:
            (tmp_path / "results").write_text(text)
        assert processes.events(tmp_path / "results") == []


class TestFailures:
    def test_a_failing_benchmark_is_named(self, project):
        misbehave(project, "raise ValueError('only in a child')")
        result = project.run("--gate-processes=3")
        assert result.ret == 1
        result.assert_outcomes(passed=2, failed=1)
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 1 of 3: 1 of 2 benchmarks in * s, exit status 1 *",
                "kernelgate: output of process 1 of 3:",
                "E *ValueError: only in a child",
                "kernelgate: process 2 of 3: 1 of 1 benchmarks in * s, exit status 0 *",
                "*= FAILURES =*",
                "ValueError: only in a child",
                "E *ValueError: only in a child",
                "FAILED test_it.py::test_work - Failed: ValueError: only in a child",
            ]
        )

    def test_a_benchmark_that_a_process_skips_is_skipped(self, project):
        misbehave(project, "import pytest; pytest.skip('not on Sundays')")
        result = project.run("--gate-processes=3", "-rs")
        assert result.ret == 0
        result.assert_outcomes(passed=2, skipped=1)
        result.stdout.fnmatch_lines("SKIPPED * not on Sundays")

    def test_a_benchmark_that_measures_nothing_is_named(self, project):
        project.pytester.makepyfile(test_it="def test_idle(benchmark): pass")
        project.configure(filterwarnings="ignore")  # pytest-benchmark warns of it
        result = project.run("--gate-processes=2")
        assert result.ret == 1
        result.stdout.fnmatch_lines("nothing was measured: does it call benchmark(...)?")

    def test_a_benchmark_that_the_processes_do_not_find_is_named(self, project):
        project.pytester.makepyfile(
            test_it="""
            import clock
            import pytest

            @pytest.mark.parametrize("process", [clock.process])
            def test_work(benchmark, process):
                benchmark(clock.work)
            """
        )
        result = project.run("--benchmark-compare", "--gate-processes=2")
        assert result.ret == 1
        result.stdout.fnmatch_lines("no process observed it: does it call benchmark(...)?")

    def test_a_killed_process_costs_the_benchmark_that_it_died_of(self, project):
        misbehave(project, "os.kill(os.getpid(), signal.SIGKILL)")
        result = project.run("--gate-processes=3")
        assert result.ret == 1
        result.assert_outcomes(passed=2, failed=1)
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 1 of 3: 1 of 2 benchmarks in * s, killed by SIGKILL *",
                "kernelgate: process 2 of 3: 1 of 1 benchmarks in * s, exit status 0 *",
                "the process that measured it ended with killed by SIGKILL",
            ]
        )

    def test_a_hanging_process_is_killed(self, project):
        misbehave(project, "time.sleep(60)")
        result = project.run("--gate-processes=2", "--gate-timeout=4")
        assert result.ret == 1
        result.assert_outcomes(passed=2, failed=1)
        result.stdout.fnmatch_lines("the process that measured it ended with killed after 4 s (--gate-timeout)")

    def test_a_process_that_does_not_get_to_its_tests_ends_everything(self, project):
        project.pytester.makepyfile(
            test_it="""
            import clock

            assert clock.process != 2, "cannot be imported twice"

            def test_work(benchmark):
                benchmark(clock.work)
            """
        )
        result = project.run("--gate-processes=4")
        assert result.ret == 1
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(
            ["*cannot be imported twice*", "not measured: process 2 of 4 ended with exit status 2"]
        )
        assert "process 3 of 4" not in result.stdout.str()

    def test_a_process_that_fails_without_a_failed_test_leaves_no_verdict(self, project):
        with (project.path / "conftest.py").open("a") as stream:
            stream.write("\nimport clock\ndef pytest_sessionfinish(): assert clock.process != 1\n")
        result = project.run("--gate-processes=2")
        assert result.ret == 1
        result.stdout.fnmatch_lines("not measured: process 1 of 2 ended with exit status 1")

    def test_what_failed_in_one_child_does_not_select_for_the_next(self, project):
        project.environment(FAIL=1)
        misbehave(project, "raise ValueError")
        project.run("-p", "cacheprovider", "-k", "before or work")
        project.environment(FAIL="")
        (project.path / "started").unlink()
        result = project.run("-p", "cacheprovider", "--gate-processes=3", "--lf", "-k", "before or work")
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(
            ["kernelgate: process 1 of 3: 1 of 2 benchmarks*", "kernelgate: process 2 of 3: 1 of 1 benchmarks*"]
        )

    def test_a_failing_child_records_nothing(self, project):
        misbehave(project, "raise ValueError")
        project.commit()
        assert project.run("--gate-record=why", "--gate-processes=2").ret == 1
        assert project.baselines() == []
