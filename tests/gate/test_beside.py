"""Beside the plugins that many projects have: they do what they do, and turn no verdict."""

import json

import pytest

pytestmark = pytest.mark.correctness

SEVERAL = """
    import clock
    import pytest


    @pytest.mark.perf
    @pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 6])
    def test_work(benchmark, factor):
        benchmark(clock.work, factor * 1e-3)


    @pytest.mark.parametrize("number", range(4))
    def test_ordinary(number):
        pass
"""

DRAWING = """
    import random

    import clock


    def test_drawn(benchmark):
        drawn = random.random()
        benchmark.declare(error=lambda result: drawn)
        benchmark(clock.work)
"""


@pytest.fixture
def several(project):
    """A project with six benchmarks, each of its own duration, and four ordinary tests."""
    project.pytester.makepyfile(test_it=SEVERAL)
    return project


class TestXdist:
    def test_ordinary_tests_run_in_parallel_where_the_benchmarks_are_deselected(self, several):
        result = several.run("-n2", "-m", "not perf")
        assert result.ret == 0
        result.assert_outcomes(passed=4)

    def test_switched_off_it_changes_nothing(self, several):
        several.record()
        result = several.run("-n0", "--benchmark-compare", "--gate-processes=2")
        result.assert_outcomes(passed=10)
        result.stdout.fnmatch_lines("6 SAME*")


class TestRandomly:
    @pytest.fixture
    def randomly(self):
        pytest.importorskip("pytest_randomly", reason="about pytest-randomly")
        return ("-p", "pytest_randomly", "--gate-processes=2")

    def order(self, result):
        return [line.split()[0] for line in result.outlines if "::test_work[" in line]

    def test_another_order_changes_no_verdict(self, several, randomly):
        several.configure(markers="perf: performance", gate_margin=0.04, gate_mde=0.03)
        several.environment(JITTER=0.001)
        several.record("-p", "pytest_randomly", "--randomly-seed=0")
        orders = []
        for seed in (1, 2):
            result = several.run(*randomly, f"--randomly-seed={seed}", "--benchmark-compare", "-v", "-m", "perf")
            orders.append(self.order(result))
            result.stdout.fnmatch_lines("6 SAME*")
        assert sorted(orders[0]) == sorted(orders[1])
        assert orders[0] != orders[1]

    def test_with_a_seed_every_process_draws_the_same(self, project, randomly):
        project.pytester.makepyfile(test_it=DRAWING)
        result = project.run(*randomly, "--randomly-seed=3", "--benchmark-json=out.json")
        assert result.ret == 0
        (benchmark,) = json.loads((project.path / "out.json").read_text())["benchmarks"]
        here, there = benchmark["extra_info"]["metrics"]["numerical_error"]["values"]
        assert here == there


HANGING = """
    import time

    import clock


    def test_before(benchmark):
        benchmark(clock.work)


    def test_work(benchmark):
        benchmark(clock.work)
        if clock.process == {process}:
            time.sleep(60)
"""


class TestTimeout:
    @pytest.fixture
    def timeout(self):
        pytest.importorskip("pytest_timeout", reason="about pytest-timeout")
        return ("-p", "pytest_timeout", "--timeout=2")

    @pytest.mark.parametrize("method", ["signal", "thread"])
    def test_a_timeout_in_another_process_is_reported(self, project, timeout, method):
        project.pytester.makepyfile(test_it=HANGING.format(process=1))
        result = project.run(*timeout, f"--timeout-method={method}", "--gate-processes=3", "-rf")
        assert result.ret == 1
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(
            [
                "kernelgate: process 1 of 3: 1 of 2 benchmarks in * s, exit status 1*",
                "*Timeout*",
                "kernelgate: process 2 of 3: *exit status 0*",
                "FAILED test_it.py::test_work*",
            ]
        )

    def test_after_a_timeout_nothing_is_recorded(self, project, timeout):
        project.pytester.makepyfile(test_it=HANGING.format(process=0))
        project.commit()
        result = project.run(*timeout, "--gate-record=why", "--gate-processes=1")
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*Timeout*", "NOT RECORDED: a test failed*"])
        assert project.baselines() == []


class TestCov:
    @pytest.fixture
    def cov(self):
        pytest.importorskip("pytest_cov", reason="about pytest-cov")
        return ("-p", "pytest_cov.plugin", "--cov=.", "--cov-report=term")

    def test_a_run_is_measured_and_traced_and_a_regression_stays_one(self, project, cov):
        project.record()
        result = project.run(*cov, "--benchmark-compare", "--gate-processes=2")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["kernelgate: process 1 of 2: *exit status 0*", "test_it.py * 100%", "1 SAME*"])
        assert (project.path / ".coverage").exists()
        project.environment(SLOWDOWN=2)
        assert project.compare(*cov).ret == 1

    def test_a_least_coverage_is_asked_of_the_whole_run_only(self, project, cov):
        project.pytester.makepyfile(test_more="def test_more():\n" + "    pass\n" * 50)  # no child runs it
        result = project.run(*cov, "--cov-fail-under=70", "--gate-processes=2")
        assert result.ret == 0


RECOVERING = """
    import clock

    executions = 0


    def test_work(benchmark):
        global executions
        executions += 1
        benchmark(clock.work, {duration})
        assert {assertion}
"""


class TestRerunfailures:
    @pytest.fixture
    def reruns(self):
        pytest.importorskip("pytest_rerunfailures", reason="about pytest-rerunfailures")
        return ("-p", "pytest_rerunfailures", "--reruns=2")

    @pytest.mark.parametrize("forced", [(), ("--force-reruns=2",)], ids=["asked for", "forced"])
    def test_a_rerun_does_not_turn_a_regression_green(self, project, reruns, forced):
        project.record()
        project.pytester.makepyfile(test_it=RECOVERING.format(duration="2e-3 / executions", assertion="True"))
        result = project.compare(*reruns, *forced)
        assert result.ret == 1
        result.stdout.fnmatch_lines("REGRESSED: latency_s: 2.000 ms, was 1.000 ms*")
        assert "1 SAME" not in result.stdout.str()

    def test_a_benchmark_that_has_to_be_repeated_is_not_recorded(self, project, reruns):
        project.pytester.makepyfile(test_it=RECOVERING.format(duration="1e-3", assertion="executions > 1"))
        project.commit()
        result = project.run(*reruns, "--gate-record=why", "--gate-processes=1")
        assert result.ret == 1
        assert project.baselines() == []

    def test_other_tests_are_repeated_as_ever(self, project, reruns):
        project.record()
        project.pytester.makepyfile(
            test_more="""
            executions = 0

            def test_flaky():
                global executions
                executions += 1
                assert executions > 1
            """
        )
        result = project.compare(*reruns)
        assert result.ret == 0
        result.stdout.fnmatch_lines("*2 passed, 1 rerun*")
