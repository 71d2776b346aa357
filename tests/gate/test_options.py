import subprocess
import sys
from types import SimpleNamespace

import pytest

from kernelgate.marker import policy_of

pytestmark = pytest.mark.correctness


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gate-processes=0"], "--gate-processes: expected at least 1, found 0"),
        (
            ["--benchmark-compare", "--benchmark-disable"],
            "--benchmark-disable measures nothing that could be compared*",
        ),
        (
            ["--gate-against=HEAD", "--benchmark-compare"],
            "--gate-against measures what it compares with: leave out --benchmark-compare and --gate-record",
        ),
        (
            ["--gate-against=HEAD", "--gate-record=why"],
            "--gate-against measures what it compares with: leave out --benchmark-compare and --gate-record",
        ),
        (
            ["--gate-against=HEAD", "--gate-processes=1"],
            "--gate-against: expected at least 2 pairs of processes, found 1",
        ),
        (["--gate-selftest", "--benchmark-compare"], "--gate-selftest compares with itself: leave out comparing*"),
        (["--gate-selftest", "--gate-processes=3"], "--gate-selftest: expected at least --gate-processes=4, found 3"),
        (["-o", "gate_fork=sometimes"], "ini key gate_fork: expected one of auto, always, never, found 'sometimes'"),
        (["--gate-record=why", "--benchmark-compare"], "--gate-record makes a new baseline*"),
        (["--gate-record= "], "--gate-record: expected the reason for the new baseline, found nothing"),
        (["-o", "gate_margin=-1"], "ini key gate_margin: expected a positive fraction, found -1.0"),
        (["--benchmark-compare=test_it.py::test_work"], "--benchmark-compare took 'test_it.py::test_work'*"),
        (["--benchmark-compare=0001_gone.json"], "*0001_gone.json: expected a JSON file*"),
    ],
)
def test_a_mistake_is_a_usage_error(project, arguments, message):
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: {message}")


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("gate(0.1)", "gate marker: too many positional arguments*"),
        ("gate(margn=0.1)", "gate marker: got an unexpected keyword argument 'margn'*"),
        ("gate(margin='5%')", "gate marker: margin: expected a number of at least 0, found '5%'"),
        ("gate(allow=4096)", "gate marker: allow: expected metric names and amounts, found 4096"),
    ],
)
def test_a_bad_marker_is_a_usage_error(project, marker, message):
    project.pytester.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.{marker}
        def test_work(benchmark):
            pass
        """
    )
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: test_it.py::test_work: {message}")


def test_the_marker_overrides_the_margin(project):
    project.pytester.makepyfile(
        test_it="""
        import clock
        import pytest

        @pytest.mark.gate(margin=2.0)
        def test_tolerant(benchmark):
            benchmark(clock.work)

        @pytest.mark.gate(margin=0.01, mde=0.01)
        def test_strict(benchmark):
            benchmark(clock.work)
        """
    )
    project.record()
    project.environment(SLOWDOWN=1.2)
    result = project.compare()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["REGRESSED *", "  test_strict *", "SAME *", "  test_tolerant *"])


@pytest.mark.parametrize(("paired", "margin"), [(False, 0.04), (True, 0.01)])
def test_judged_metrics_and_looks_share_the_probabilities_of_both_errors(paired, margin):
    item = SimpleNamespace(
        get_closest_marker=lambda name: None, config=SimpleNamespace(getini={"gate_margin": None}.get)
    )
    policy = policy_of(item, device="cuda:0", judged=40, looks=4, paired=paired)
    assert (policy.alpha, policy.missed) == pytest.approx((0.01 / 160, 0.01 / 4))
    assert (policy.margin, policy.paired) == (margin, paired)


def test_a_run_counts_all_that_it_judges_and_every_look(project):
    project.pytester.makepyfile(
        test_it="""
        import clock
        import pytest

        def test_one(benchmark):
            benchmark(clock.work)

        @pytest.mark.gate(eager_margin=0.1)
        def test_two(benchmark):
            benchmark(clock.work)
        """
    )
    project.record("--gate-processes=1")
    with (project.path / "conftest.py").open("a") as stream:
        stream.write(
            "\nfrom kernelgate import session"
            "\nwhole = session.policy_of"
            "\ndef policy_of(item, **more):"
            "\n    print(item.name, 'judged', more['judged'], 'looks', more['looks'])"
            "\n    return whole(item, **more)"
            "\nsession.policy_of = policy_of\n"
        )
    result = project.run("--benchmark-compare", "--gate-processes=5", "-s")
    result.stdout.fnmatch_lines(["*test_one judged 3 looks 2", "*test_two judged 3 looks 2"])


def test_a_number_chooses_the_baseline(project):
    project.record()
    project.environment(SLOWDOWN=2)
    project.record()
    assert project.compare().ret == 0
    assert project.run("--benchmark-compare=1").ret == 1


def test_a_chosen_storage_is_where_baselines_are_looked_up(project):
    project.run("--benchmark-storage=runs", "--benchmark-save=base", "--gate-processes=2")
    project.environment(SLOWDOWN=2)
    result = project.run("--benchmark-storage=runs", "--benchmark-compare")
    assert result.ret == 1
    result.stdout.fnmatch_lines("1 REGRESSED*baseline 0001_base.json*")


def test_plain_saves_go_to_the_stock_place(project):
    project.run("--benchmark-autosave")
    assert len(list((project.path / ".benchmarks").rglob("*.json"))) == 1
    assert project.baselines() == []


def test_a_comparison_without_benchmarks_says_so(project):
    project.pytester.makepyfile(test_other="def test_other(): pass")
    result = project.run("--benchmark-compare", "-k", "other")
    assert result.ret == 0
    result.stdout.fnmatch_lines("no benchmark was measured*")


def test_collecting_only_measures_nothing(project):
    result = project.run("--benchmark-compare", "--collect-only")
    assert result.ret == 0
    assert "kernelgate" not in result.stdout.str()


def test_loading_the_plugin_does_not_import_torch():
    program = "import sys, kernelgate.plugin; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
