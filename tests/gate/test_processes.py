import json

import pytest

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
                "kernelgate: process 1 of 3: 1 of 1 benchmarks in * s, exit status 0",
                "kernelgate: process 2 of 3: 1 of 1 benchmarks in * s, exit status 0",
                "1 measured*3 processes*",
            ]
        )
        (benchmark,) = json.loads((project.path / "out.json").read_text())["benchmarks"]
        # The main process was started first, so it is the quickest.
        assert benchmark["extra_info"]["metrics"]["latency_s"]["values"] == pytest.approx(
            [1e-3, 1.01e-3, 0.99e-3], rel=1e-4
        )
        assert benchmark["stats"]["median"] == pytest.approx(1e-3, rel=1e-4)

    def test_one_process_is_the_default_and_three_for_a_verdict(self, project):
        assert "process 1 of" not in project.run().stdout.str()
        assert "process 1 of 3" in project.run("--benchmark-compare").stdout.str()

    def test_the_ini_key_sets_the_default(self, project):
        project.configure(gate_processes=2)
        assert "process 1 of 2" in project.run().stdout.str()
        assert "process 1 of" not in project.run("--gate-processes=1").stdout.str()

    def test_children_measure_the_selected_benchmarks_and_nothing_else(self, project):
        project.pytester.makepyfile(test_it=MISBEHAVING.format(deed="pass"))
        result = project.run("--gate-processes=2", "-k", "before or ordinary")
        result.assert_outcomes(passed=2, deselected=1)
        result.stdout.fnmatch_lines("kernelgate: process 1 of 2: 1 of 1 benchmarks*")

    def test_children_write_no_reports(self, project):
        misbehave(project, "raise ValueError")
        written = ("--junitxml=junit.xml", "--benchmark-json=out.json", "--benchmark-save=run", "-p", "cacheprovider")
        project.run("--gate-processes=2", *written)
        assert 'tests="3"' in (project.path / "junit.xml").read_text()
        assert len(list((project.path / ".benchmarks").rglob("*.json"))) == 1
        failed = json.loads((project.path / ".pytest_cache" / "v" / "cache" / "lastfailed").read_text())
        assert list(failed) == ["test_it.py::test_work"]


class TestFailures:
    def test_a_failing_benchmark_is_named(self, project):
        misbehave(project, "raise ValueError('only in a child')")
        result = project.run("--gate-processes=3")
        assert result.ret == 1
        result.assert_outcomes(passed=2, failed=1)
        result.stdout.fnmatch_lines(
            [
                "kernelgate: output of process 1:",
                "E *ValueError: only in a child",
                "no result from process 1 of 3; its output is above",
            ]
        )

    def test_a_killed_process_leaves_no_verdict(self, project):
        misbehave(project, "os.kill(os.getpid(), signal.SIGKILL)")
        result = project.run("--gate-processes=3")
        assert result.ret == 1
        result.assert_outcomes(passed=1, errors=2)
        result.stdout.fnmatch_lines("not measured: process 1 of 3 ended with killed by SIGKILL")
        assert "process 2 of 3" not in result.stdout.str()

    def test_a_hanging_process_is_killed(self, project):
        misbehave(project, "time.sleep(60)")
        result = project.run("--gate-processes=2", "--gate-timeout=2")
        assert result.ret == 1
        result.stdout.fnmatch_lines("not measured: process 1 of 2 ended with killed after 2 s (--gate-timeout)")

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
        result.stdout.fnmatch_lines("kernelgate: process 2 of 3: 2 of 2 benchmarks*")

    def test_a_failing_child_records_nothing(self, project):
        misbehave(project, "raise ValueError")
        project.commit()
        assert project.run("--gate-record=why", "--gate-processes=2").ret == 1
        assert project.baselines() == []
