import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from kernelgate import baseline
from kernelgate.baseline import BaselineError

pytestmark = pytest.mark.correctness


def document(**changes):
    latency = {"values": [1e-3], "unit": "s", "kind": "noisy", "better": "lower"}
    entry = {"fullname": "test_it.py::test_work", "stats": {}, "extra_info": {"metrics": {"latency_s": latency}}}
    return {"kernelgate": {"schema": 1, "machine_class": "test-box"}, "benchmarks": [entry]} | changes


def stored(folder, content):
    path = folder / "0001_abc.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class TestFiles:
    def test_what_was_written_is_read_back(self, tmp_path):
        path = baseline.write(tmp_path / "box", document(), "abc", lock=tmp_path / "lock")
        assert path.name == "0001_abc.json"
        entries = baseline.load(path).entries
        assert entries["test_it.py::test_work"].metrics["latency_s"].values == (1e-3,)

    def test_numbers_follow_the_largest_even_when_files_are_gone(self, tmp_path):
        for commit in ("a", "b", "c"):
            baseline.write(tmp_path, document(), commit, lock=tmp_path / "lock")
        (tmp_path / "0002_b.json").unlink()
        assert baseline.write(tmp_path, document(), "d", lock=tmp_path / "lock").name == "0004_d.json"

    def test_concurrent_writers_each_get_a_number(self, tmp_path):
        writers = [
            threading.Thread(
                target=baseline.write, args=(tmp_path, document(), "abc"), kwargs={"lock": tmp_path / "lock"}
            )
            for _ in range(8)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [path.name[:4] for path in baseline.files(tmp_path)] == [f"{number:04}" for number in range(1, 9)]

    def test_a_failing_write_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            baseline.write(tmp_path / "box", document(), "abc", lock=tmp_path / "lock")
        assert list((tmp_path / "box").iterdir()) == []

    @pytest.mark.parametrize("selector", ["2", "0002", "0002_b", "0002_b.json"])
    def test_a_number_selects_a_file(self, tmp_path, selector):
        for commit in ("a", "b"):
            baseline.write(tmp_path, document(), commit, lock=tmp_path / "lock")
        assert baseline.find(tmp_path, selector).name == "0002_b.json"


class TestUnreadableFiles:
    @pytest.mark.parametrize(
        ("content", "field"),
        [
            (json.dumps(document())[:-20], "expected a JSON file"),
            ("[]", "kernelgate: missing"),
            (
                document(kernelgate={"schema": 2, "machine_class": "test-box"}),
                "kernelgate.schema: expected at most 1, found 2",
            ),
            (document(kernelgate={"schema": 1}), "kernelgate.machine_class: missing"),
            (document(benchmarks=None), "benchmarks: expected a list"),
            (document(benchmarks=[{"fullname": "t"}]), r"benchmarks\[0\].stats: missing"),
            (
                document(benchmarks=[{"fullname": "t", "stats": {}, "extra_info": {"metrics": {}}}]),
                r"benchmarks\[0\].extra_info.metrics.latency_s: missing",
            ),
            (
                document(
                    benchmarks=[
                        {"fullname": "t", "stats": {}, "extra_info": {"metrics": {"latency_s": {"values": []}}}}
                    ]
                ),
                r"benchmarks\[0\].extra_info.metrics: latency_s.values: expected a list of numbers",
            ),
        ],
    )
    def test_the_error_names_file_and_field(self, tmp_path, content, field):
        path = stored(tmp_path, content)
        with pytest.raises(BaselineError, match=f"0001_abc.json: {field}"):
            baseline.load(path)

    def test_it_is_a_usage_error_before_anything_is_measured(self, project):
        path = project.record("--gate-processes=1")
        path.write_text(path.read_text()[:100])
        result = project.run("--benchmark-compare")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: *0001_*.json: expected a JSON file*")


class TestStockTools:
    def test_they_read_a_baseline(self, project):
        path = project.record()
        command = [sys.executable, "-m", "pytest_benchmark", "compare", str(path), "--columns=median,rounds"]
        finished = subprocess.run(command, cwd=project.path, capture_output=True, text=True, check=True)
        assert "test_work" in finished.stdout
        assert "1.0000" in finished.stdout

    def test_a_baseline_holds_the_samples_of_every_process(self, project):
        (benchmark,) = json.loads(project.record("--gate-processes=3").read_text())["benchmarks"]
        assert sum(benchmark["extra_info"]["rounds"]) == len(benchmark["stats"]["data"]) == benchmark["stats"]["rounds"]
        assert len(benchmark["extra_info"]["rounds"]) == 3
        assert benchmark["extra_info"]["metrics"]["latency_s"]["values"] == pytest.approx([1e-3] * 3, rel=1e-5)
