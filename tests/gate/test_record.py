import json

import pytest

from kernelgate.baseline import Baseline
from kernelgate.metrics import metric
from kernelgate.record import lock_file, moved_ceilings
from tests.gate.documents import document, entry, metric as stored_metric

pytestmark = pytest.mark.correctness

TWO = """
    import clock
    import pytest

    @pytest.mark.parametrize("size", ["small", "large"])
    def test_work(benchmark, size):
        benchmark(clock.work)
"""


def names(path):
    return sorted(benchmark["name"] for benchmark in json.loads(path.read_text())["benchmarks"])


class TestRefusals:
    def refused(self, project, *arguments):
        result = project.run(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert not (project.path / "started").exists() or "test session starts" not in result.stdout.str()
        assert project.baselines() == []
        return result.stderr.str()

    def test_an_empty_reason(self, project):
        project.commit()
        assert "expected the reason" in self.refused(project, "--gate-record= ")

    def test_a_dirty_tree(self, project):
        project.commit()
        (project.path / "kernel.py").touch()
        error = self.refused(project, "--gate-record=why")
        assert "uncommitted changes" in error
        assert "?? kernel.py" in error

    def test_an_unknown_commit(self, project):
        project.environment(GIT_CEILING_DIRECTORIES=project.path.parent)
        assert "KERNELGATE_COMMIT" in self.refused(project, "--gate-record=why")

    def test_comparing_at_the_same_time(self, project):
        project.commit()
        assert "choose one" in self.refused(project, "--gate-record=why", "--benchmark-compare")

    def test_nothing_to_record(self, project):
        project.commit()
        result = project.run("--gate-record=why", "-k", "nothing")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: --gate-record: no benchmark was selected*")


class TestRecording:
    def test_a_file_says_what_why_and_where(self, project):
        path = project.record()
        document = json.loads(path.read_text())
        assert document["kernelgate"]["reason"] == "first"
        assert document["kernelgate"]["machine_class"] == "test-box"
        assert "python" in document["kernelgate"]["toolchain"]
        assert document["commit_info"]["id"].startswith(path.stem.partition("_")[2])
        assert "hz_actual" not in document["machine_info"]["cpu"]

    def test_a_parameter_that_is_no_json_value_is_written_as_its_repr(self, project):
        project.pytester.makepyfile(test_it=TWO.replace('"small", "large"', "frozenset([1]), frozenset([2])"))
        project.commit()
        assert project.run("--gate-record=why").ret == 0
        stored = json.loads(project.baselines()[0].read_text())
        assert stored["benchmarks"][0]["params"] == {"size": "UNSERIALIZABLE[frozenset({1})]"}
        assert project.run("--benchmark-compare", "--gate-processes=1").ret == 0

    def test_an_exported_tree_names_its_commit(self, project):
        project.environment(GIT_CEILING_DIRECTORIES=project.path.parent, KERNELGATE_COMMIT="0123456789abcdef")
        assert project.run("--gate-record=why", "--gate-processes=1").ret == 0
        assert [path.name for path in project.baselines()] == ["0001_0123456789.json"]

    def test_files_are_added_and_never_changed(self, project):
        first = project.record("--gate-processes=1")
        content = first.read_bytes()
        second = project.record("--gate-processes=1")
        assert first.read_bytes() == content
        assert second.name.startswith("0002_")

    def test_benchmarks_not_asked_for_are_carried_over(self, project):
        project.pytester.makepyfile(test_it=TWO, test_more=TWO)
        first = project.record("--gate-processes=1")
        assert len(names(first)) == 4
        second = project.record("--gate-processes=1", "test_it.py", "-k", "small")
        assert names(second) == names(first)

    def test_benchmarks_that_are_gone_are_not_carried_over(self, project):
        project.pytester.makepyfile(test_it=TWO)
        project.record("--gate-processes=1")
        project.pytester.makepyfile(test_it=TWO.replace('["small", "large"]', '["small"]'))
        assert names(project.record("--gate-processes=1")) == ["test_work[small]"]


class TestStateOfTheMachine:
    """A baseline is not recorded while the machine's ceilings are not those of the baseline before."""

    CEILINGS = """
import os
from kernelgate import measure
from kernelgate.metrics import metric

measure.ceilings = lambda device: {
    "ceiling_copy": metric(float(os.environ.get("COPY", "1e12")), "B/s", "ceiling", better="higher"),
    "ceiling_matmul": metric(1e12, "FLOP/s", "ceiling", better="higher"),
}
"""

    @pytest.fixture
    def recorded(self, project):
        conftest = project.path / "conftest.py"
        conftest.write_text(conftest.read_text() + self.CEILINGS)
        project.record("--gate-processes=1")
        project.commit()
        return project

    def test_another_state_is_refused(self, recorded):
        recorded.environment(COPY=5e11)
        result = recorded.run("--gate-record=why", "--gate-processes=2", "-rs")
        assert result.ret == 12
        result.stdout.fnmatch_lines("*ENV: ceiling_copy: 500 GB/s, was 1 TB/s: the machine is not in the state*")
        result.stdout.no_fnmatch_line("recorded *.json")
        assert len(recorded.baselines()) == 1

    def test_so_it_is_for_a_benchmark_that_the_baseline_does_not_have(self, recorded):
        recorded.pytester.makepyfile(test_it=TWO)
        recorded.commit()
        recorded.environment(COPY=5e11)
        assert recorded.run("--gate-record=why", "--gate-processes=1").ret == 12
        assert len(recorded.baselines()) == 1

    @pytest.mark.parametrize(("copy", "arguments"), [(8e11, ()), (5e11, ("-o", "gate_env_tolerance=1.5"))])
    def test_a_state_within_the_tolerance_is_the_same(self, recorded, copy, arguments):
        recorded.environment(COPY=copy)
        assert recorded.run("--gate-record=why", "--gate-processes=1", *arguments).ret == 0
        assert len(recorded.baselines()) == 2

    @pytest.mark.parametrize(("device", "moved"), [("cuda:0", False), ("cpu:0", True)])
    def test_devices_of_another_kind_have_other_ceilings(self, tmp_path, device, moved):
        previous = Baseline(tmp_path, document())
        now = {"ceiling_copy": metric(1e11, "B/s", "ceiling", better="higher")}
        assert bool(moved_ceilings(previous, now, device, 0.3)) == moved

    def test_it_is_the_median_of_all_benchmarks_before(self, tmp_path):
        rates = [1e12, 1e12, 5e11]  # the last one carried over from an older recording
        entries = [
            entry(f"test_{number}", ceiling_copy=stored_metric(rate, unit="B/s", kind="ceiling", better="higher"))
            for number, rate in enumerate(rates)
        ]
        now = {"ceiling_copy": metric(1e12, "B/s", "ceiling", better="higher")}
        assert moved_ceilings(Baseline(tmp_path, document(*entries)), now, "cpu", 0.05) == []


class TestFailingToWrite:
    def test_a_full_disk_costs_the_recording_and_nothing_else(self, project):
        first = project.record("--gate-processes=1")
        content = first.read_bytes()
        with (project.path / "conftest.py").open("a") as conftest:
            conftest.write(
                "\nimport errno, os\ndef full(_): raise OSError(errno.ENOSPC, 'No space left')\nos.fsync = full\n"
            )
        project.commit()
        result = project.run("--gate-record=why", "--gate-processes=1")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: no baseline was recorded: *No space left*")
        result.stdout.fnmatch_lines("*test_work*1.000 ms*")
        assert list(first.parent.iterdir()) == [first]
        assert first.read_bytes() == content

    def test_a_benchmark_that_could_not_be_judged_is_not_recorded(self, project):
        project.pytester.makepyfile(test_it="def test_work(benchmark): benchmark.pedantic(lambda: None)")
        project.pytester.makepyfile(clock="def now(): return 0.0")
        project.commit()
        result = project.run("--gate-record=why", "--gate-processes=1")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: *latency_s.values: expected positive finite numbers, found 0.0")
        assert project.baselines() == []

    def test_the_folder_of_the_lock_stays_outside_version_control(self, tmp_path):
        folder = lock_file(tmp_path).parent
        (folder / ".gitignore").write_text("")  # as a full disk leaves it
        lock_file(tmp_path)
        assert (folder / ".gitignore").read_text() == "*\n"


class TestLocalBaseline:
    def local(self, project):
        return sorted((project.path / ".kernelgate" / "test-box").glob("*.json"))

    def test_it_is_made_once_and_then_compared_with(self, project):
        arguments = ("--benchmark-compare", "--gate-processes=2")
        result = project.run(*arguments)
        assert result.ret == 0
        result.stdout.fnmatch_lines("NO BASELINE for machine class test-box*")
        assert len(self.local(project)) == 1
        project.environment(SLOWDOWN=2)
        result = project.run(*arguments)
        assert result.ret == 1
        result.stdout.fnmatch_lines("1 REGRESSED*local baseline 0001_local.json*")
        assert len(self.local(project)) == 1

    def test_it_is_invisible_to_git(self, project):
        project.commit()
        project.compare()
        assert project.run("--gate-record=why", "--gate-processes=1").ret == 0

    def test_it_grows_by_new_benchmarks_and_keeps_the_others(self, project):
        project.run("--benchmark-compare", "--gate-processes=2")
        project.environment(SLOWDOWN=1.01)
        project.pytester.makepyfile(test_more=TWO)
        assert project.run("--benchmark-compare", "--gate-processes=2").ret == 0
        first, second = self.local(project)
        assert names(second) == ["test_work", "test_work[large]", "test_work[small]"]
        (old,) = json.loads(first.read_text())["benchmarks"]
        assert old in json.loads(second.read_text())["benchmarks"]

    def test_it_is_not_made_by_a_failing_run(self, project):
        project.pytester.makepyfile(test_other="def test_other(): assert False")
        assert project.compare().ret == 1
        assert self.local(project) == []
