"""The eight ways in which pytest-benchmark lets a regression pass, and what the gate says instead."""

import json
import os

import pytest

pytestmark = pytest.mark.correctness


def stock_file(project):
    """The one file that the stock plugin saved."""
    (path,) = (project.path / ".benchmarks").rglob("*.json")
    return path


def saved_names(path):
    return [benchmark["name"] for benchmark in json.loads(path.read_text())["benchmarks"]]


class TestTrap1BenchmarksUnderXdist:
    def test_stock_disables_them_and_passes(self, project):
        result = project.run_stock("-n1")
        assert result.ret == 0
        result.assert_outcomes(passed=1)

    def test_ours_fails_each_selected_benchmark(self, project):
        result = project.run("-n1")
        assert result.ret == 1
        result.stdout.fnmatch_lines("*benchmarks do not run in parallel; deselect them, or leave out -n")

    def test_ours_leaves_other_tests_alone(self, project):
        project.pytester.makepyfile(test_other="def test_other(): pass")
        result = project.run("-n1", "-k", "other")
        assert result.ret == 0
        result.assert_outcomes(passed=1)

    def test_ours_refuses_to_compare_in_parallel(self, project):
        result = project.run("-n1", "--benchmark-compare")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: benchmarks cannot be compared or recorded under xdist*")


class TestTrap2ComparingWithNothing:
    def test_stock_passes_when_nothing_matches(self, project):
        result = project.run_stock("-W", "default", "--benchmark-compare=0042")
        assert result.ret == 0

    def test_ours_lists_what_there_is(self, project):
        project.record("--gate-processes=1")
        result = project.run("--benchmark-compare=0042")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: 0 baselines in * match '0042'; there are: 0001_*.json")

    def test_stock_swallows_a_path_and_passes(self, project):
        result = project.run_stock("-W", "default", "--benchmark-compare", "test_it.py")
        assert result.ret == 0

    def test_ours_says_that_a_path_was_swallowed(self, project):
        result = project.run("--benchmark-compare", "test_it.py")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: --benchmark-compare took 'test_it.py', which is a path to tests*")

    def test_stock_dies_of_its_own_warning(self, project):
        result = project.run_stock("-W", "error", "--benchmark-compare")
        assert result.ret == pytest.ExitCode.INTERNAL_ERROR
        result.stdout.fnmatch_lines("INTERNALERROR> *PytestBenchmarkWarning: Can't compare*")

    def test_ours_makes_a_local_baseline_and_says_so(self, project):
        result = project.run("-W", "error", "--benchmark-compare", "--gate-processes=1")
        assert result.ret == 0
        result.stdout.fnmatch_lines("NO BASELINE for machine class test-box*")


class TestTrap3CompareFail:
    def slow_down(self, project, run):
        """Save a baseline where the run looks for it, and slow down by half."""
        if run == project.run_stock:
            run("--benchmark-save=base")
        else:
            project.record("--gate-processes=1")
        project.environment(SLOWDOWN=1.49)

    def test_stock_honours_only_the_last_of_several(self, project):
        self.slow_down(project, project.run_stock)
        failing, passing = "--benchmark-compare-fail=mean:10%", "--benchmark-compare-fail=mean:90%"
        assert project.run_stock("--benchmark-compare", failing).ret != 0
        assert project.run_stock("--benchmark-compare", failing, passing).ret == 0

    def test_ours_honours_all_of_them(self, project):
        self.slow_down(project, project.run)
        project.configure(gate_margin=5.0)  # leaves the failing to the expression
        failing, passing = "--benchmark-compare-fail=mean:10%", "--benchmark-compare-fail=mean:90%"
        result = project.compare(failing, passing)
        assert result.ret == 1
        result.stdout.fnmatch_lines("--benchmark-compare-fail: Field 'mean' has failed*")

    def test_stock_refuses_fractions(self, project):
        result = project.run_stock("--benchmark-compare-fail=mean:5.5%")
        assert result.ret == pytest.ExitCode.USAGE_ERROR

    def test_ours_takes_fractions(self, project):
        project.record("--gate-processes=1")
        project.environment(SLOWDOWN=1.056)
        for limit, failed in (("mean:5.5%", 1), ("mean:5.7%", 0)):
            result = project.compare(f"--benchmark-compare-fail={limit}")
            assert result.parseoutcomes().get("failed", 0) == failed

    def test_ours_needs_something_to_compare_with(self, project):
        result = project.run("--benchmark-compare-fail=mean:5%")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: --benchmark-compare-fail needs --benchmark-compare")


class TestTrap4EntriesOnOneSideOnly:
    RENAMED = """
        import clock

        def test_renamed(benchmark):
            benchmark(clock.work)
    """

    def test_stock_passes_both(self, project):
        project.run_stock("--benchmark-save=base")
        project.pytester.makepyfile(test_it=self.RENAMED)
        assert project.run_stock("--benchmark-compare").ret == 0

    def test_ours_fails_the_new_and_the_missing(self, project):
        project.record("--gate-processes=1")
        project.pytester.makepyfile(test_it=self.RENAMED)
        result = project.compare("-rf", "--junitxml=junit.xml")
        assert result.ret == 1
        result.stdout.fnmatch_lines(
            ["FAILED test_it.py::test_renamed - Failed: NEW*", "FAILED test_it.py::test_work - MISSING*"],
        )
        junit = (project.path / "junit.xml").read_text()
        assert 'failures="2"' in junit
        assert 'name="test_work"' in junit

    @pytest.mark.parametrize("selection", [["-k", "renamed"], ["--deselect=test_it.py::test_work"], ["test_more.py"]])
    def test_ours_does_not_miss_what_was_not_asked_for(self, project, selection):
        project.pytester.makepyfile(test_more=self.RENAMED)
        project.record("--gate-processes=1")
        result = project.run("--benchmark-compare", "--gate-processes=2", *selection)
        assert result.ret == 0
        assert "MISSING" not in result.stdout.str()


class TestTrap5FailingTestAsBaseline:
    FAILING = """
        import clock

        def test_wrong(benchmark):
            benchmark(clock.work)
            assert False, "the result is wrong"
    """

    def test_stock_saves_it(self, project):
        project.pytester.makepyfile(test_it=self.FAILING)
        project.run_stock("--benchmark-save=base")
        assert saved_names(stock_file(project)) == ["test_wrong"]

    def test_ours_does_not(self, project):
        project.pytester.makepyfile(test_it=self.FAILING)
        result = project.run("--benchmark-save=base")
        assert result.ret == 1
        assert saved_names(stock_file(project)) == []

    def test_ours_does_not_record_it(self, project):
        project.pytester.makepyfile(test_it=self.FAILING)
        project.commit()
        result = project.run("--gate-record=why", "--gate-processes=1")
        assert result.ret == 1
        assert project.baselines() == []
        result.stdout.fnmatch_lines("NOT RECORDED: a test failed*")


class TestTrap6RegressedRunAsBaseline:
    def test_stock_fails_once_and_then_passes(self, project):
        arguments = ("--benchmark-autosave", "--benchmark-compare", "--benchmark-compare-fail=mean:10%")
        project.run_stock("--benchmark-autosave")
        project.environment(SLOWDOWN=2)
        assert project.run_stock(*arguments).ret != 0
        assert project.run_stock(*arguments).ret == 0

    def test_ours_fails_every_time(self, project):
        project.record()
        project.environment(SLOWDOWN=2)
        for _ in range(2):
            result = project.run("--benchmark-autosave", "--benchmark-compare", "--gate-processes=1")
            assert result.ret == 1
            result.stdout.fnmatch_lines("REGRESSED*")
        assert len(project.baselines()) == 1
        assert all(saved_names(path) == [] for path in (project.path / ".benchmarks").rglob("*.json"))


class TestTrap7JUnit:
    def test_stock_shows_no_failure(self, project):
        project.run_stock("--benchmark-save=base")
        project.environment(SLOWDOWN=2)
        result = project.run_stock("--benchmark-compare", "--benchmark-compare-fail=mean:10%", "--junitxml=junit.xml")
        assert result.ret != 0
        assert 'failures="0"' in (project.path / "junit.xml").read_text()

    def test_ours_fails_the_test(self, project):
        project.record()
        project.environment(SLOWDOWN=2)
        result = project.compare("--junitxml=junit.xml")
        assert result.ret == 1
        junit = (project.path / "junit.xml").read_text()
        assert 'failures="1"' in junit
        assert "latency_s: 2.000 ms, was 1.000 ms: +100 %" in junit


class TestTrap8StorageElsewhere:
    @pytest.fixture
    def storage(self, project, tmp_path_factory):
        """A storage outside the working directory, with a run of another machine in it."""
        folder = tmp_path_factory.mktemp("storage")
        project.run_stock(f"--benchmark-storage={folder}", "--benchmark-save=base")
        (path,) = folder.rglob("*.json")
        document = json.loads(path.read_text())
        document["machine_info"]["node"] = "elsewhere"
        document["kernelgate"] = {"schema": 1, "machine_class": "other-box", "toolchain": {}}
        document["benchmarks"] = []
        path.write_text(json.dumps(document))
        return os.path.relpath(folder, project.path)

    def test_stock_dies(self, project, storage):
        result = project.run_stock(f"--benchmark-storage={storage}", "--benchmark-compare")
        assert result.ret == pytest.ExitCode.INTERNAL_ERROR
        result.stdout.fnmatch_lines("INTERNALERROR> ValueError: * is not in the subpath of *")

    def test_ours_says_that_the_machines_differ(self, project, storage):
        result = project.run(f"--benchmark-storage={storage}", "--benchmark-compare")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: *recorded on machine class other-box, and this is test-box*")
