import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from kernelgate import baseline
from kernelgate.baseline import BaselineError, seal
from tests.gate.conftest import ROOT
from tests.gate.documents import document, entry, stored

pytestmark = pytest.mark.correctness

COMMITTED = sorted(ROOT.glob("perf_baselines/*/0*.json"))
WRITER = """
    import json, os, signal, sys
    from pathlib import Path
    from kernelgate import baseline

    content = json.loads(os.environ["DOCUMENT"])

    def write(commit):
        baseline.write(Path("box"), content, commit, lock=Path("lock"))
"""


def write(folder, commit="abc", **changes):
    return baseline.write(folder / "box", document(**changes), commit, lock=folder / "lock")


def in_a_process(folder, lines):
    """Run lines after those of WRITER."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER) + textwrap.dedent(lines)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DOCUMENT": json.dumps(document())},
    )


class TestFiles:
    def test_what_was_written_is_read_back(self, tmp_path):
        path = write(tmp_path)
        assert path.name == "0001_abc.json"
        entries = baseline.load(path).entries
        assert entries["test_it.py::test_work"].metrics["latency_s"].values == (1e-3, 1.01e-3)

    def test_numbers_follow_the_largest_even_when_files_are_gone(self, tmp_path):
        for commit in ("a", "b", "c"):
            write(tmp_path, commit)
        (tmp_path / "box" / "0002_b.json").unlink()
        assert write(tmp_path, "d").name == "0004_d.json"

    @pytest.mark.parametrize("selector", ["2", "0002", "0002_b", "0002_b.json"])
    def test_a_number_selects_a_file(self, tmp_path, selector):
        for commit in ("a", "b"):
            write(tmp_path, commit)
        assert baseline.find(tmp_path / "box", selector).name == "0002_b.json"

    @pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
    def test_baselines_of_every_schema_so_far_are_read(self, path):
        assert baseline.load(path).entries

    def test_there_are_baselines_of_the_first_schema(self):
        assert any(json.loads(path.read_text())["kernelgate"]["schema"] == 1 for path in COMMITTED)

    def test_the_newest_is_not_removed_nor_anything_with_it(self, tmp_path):
        paths = [write(tmp_path, commit) for commit in ("a", "b", "c")]
        with pytest.raises(BaselineError, match=r"0003_c\.json: the newest of its folder"):
            baseline.remove(paths, lock=tmp_path / "lock")
        assert baseline.files(tmp_path / "box") == paths
        baseline.remove(paths[:2], lock=tmp_path / "lock")
        assert baseline.files(tmp_path / "box") == paths[2:]


class TestFaults:
    def test_concurrent_threads_each_get_a_number(self, tmp_path):
        writers = [threading.Thread(target=write, args=(tmp_path,)) for _ in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [path.name[:4] for path in baseline.files(tmp_path / "box")] == [f"{n:04}" for n in range(1, 9)]

    def test_concurrent_processes_each_get_a_number(self, tmp_path):
        writers = [in_a_process(tmp_path, f"for _ in range(10): write('{commit}')") for commit in ("a", "b")]
        assert [writer.wait() for writer in writers] == [0, 0]
        written = baseline.files(tmp_path / "box")
        assert [path.name[:4] for path in written] == [f"{number:04}" for number in range(1, 21)]
        assert {path.stem[5:] for path in written} == {"a", "b"}

    def test_a_full_disk_leaves_the_folder_as_it_was(self, tmp_path):
        first = write(tmp_path)
        before = first.read_bytes()
        writer = in_a_process(
            tmp_path,
            """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                write("b")
            except OSError as error:
                sys.exit(error.errno)
            """,
        )
        assert writer.wait() == errno.EFBIG
        assert list((tmp_path / "box").iterdir()) == [first]
        assert first.read_bytes() == before

    def test_a_write_that_fails_at_the_very_end_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path)
        assert list((tmp_path / "box").iterdir()) == []

    def test_a_kill_in_the_midst_of_writing_leaves_no_baseline(self, tmp_path):
        first = write(tmp_path)
        before = first.read_bytes()
        writer = in_a_process(
            tmp_path,
            """
            os.fsync = lambda descriptor: (os.ftruncate(descriptor, 100), os.kill(os.getpid(), signal.SIGKILL))
            write("b")
            """,
        )
        assert writer.wait() == -signal.SIGKILL
        left = set((tmp_path / "box").iterdir()) - {first}
        assert {path.suffix for path in left} == {".tmp"}
        assert baseline.files(tmp_path / "box") == [first]
        assert first.read_bytes() == before
        assert write(tmp_path, "c").name == "0002_c.json"  # and the lock is free

    def test_what_could_not_be_read_is_not_written(self, tmp_path):
        with pytest.raises(BaselineError, match=r"box: benchmarks\[0\]\.extra_info\.metrics\.latency_s\.values: "):
            baseline.write(tmp_path / "box", document(entry(latency=0.0)), "abc", lock=tmp_path / "lock")
        assert not (tmp_path / "box").exists()


class TestSeal:
    def edited(self, folder, change):
        content = document(entry(), entry("test_more"))
        change(content)
        return stored(folder, json.dumps(content))

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            (lambda content: content["benchmarks"][1]["stats"].update(median=2e-3), "benchmarks[1]"),
            (lambda content: content["benchmarks"][0]["extra_info"].update(threads=8), "benchmarks[0]"),
            (lambda content: content["benchmarks"].pop(), "benchmarks"),
            (lambda content: content["benchmarks"].reverse(), "benchmarks[0]"),
            (lambda content: content["commit_info"].update(id="f" * 40), "commit_info"),
            (lambda content: content.pop("machine_info"), "machine_info"),
            (lambda content: content.update(comment="faster"), "comment"),
            (lambda content: content["kernelgate"].update(reason="another"), "kernelgate"),
            (lambda content: content["kernelgate"].update(schema=1), "kernelgate"),
            (lambda content: content["kernelgate"]["checksum"].update(version="0"), "version"),
            (lambda content: content["kernelgate"]["checksum"].pop("version"), "version"),
        ],
    )
    def test_an_edited_file_is_refused_with_the_part_that_was_edited(self, tmp_path, change, part):
        path = self.edited(tmp_path, change)
        with pytest.raises(BaselineError) as caught:
            baseline.load(path)
        assert str(caught.value).startswith(f"{path}: {part}: differs from its digest in kernelgate.checksum: ")

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content["kernelgate"].pop("checksum"),
            lambda content: content["kernelgate"].update(checksum="abc"),
        ],
    )
    def test_a_file_of_the_second_schema_has_a_checksum(self, tmp_path, change):
        path = self.edited(tmp_path, change)
        with pytest.raises(BaselineError, match=r"0001_abc\.json: kernelgate\.checksum: expected the digests"):
            baseline.load(path)

    def test_a_file_of_the_first_schema_needs_none(self, tmp_path):
        content = document(schema=1)
        assert "checksum" not in content["kernelgate"]
        assert baseline.load(stored(tmp_path, json.dumps(content))).entries

    def test_white_space_and_the_order_of_fields_are_no_content(self, tmp_path):
        content = document()
        assert baseline.load(stored(tmp_path, json.dumps(content, indent=2, sort_keys=True))).document == content

    def test_sealing_is_of_what_will_be_read(self):
        content = document()
        content["benchmarks"][0]["params"] = {1: (frozenset([2]), "x")}
        sealed = seal(content)
        assert sealed["benchmarks"][0]["params"] == {"1": ["UNSERIALIZABLE[frozenset({2})]", "x"]}
        assert seal(sealed) == sealed


class TestUnreadableFiles:
    @pytest.mark.parametrize(
        ("text", "field"),
        [
            (json.dumps(document())[:-20], "expected a JSON file"),
            ("[" * 100_000, "expected a JSON file"),
            ("[]", "kernelgate: missing"),
            (json.dumps(document(kernelgate=None, schema=1)), "kernelgate: missing"),
            (json.dumps(document(schema=3)), "kernelgate.schema: expected 1 to 2, found 3"),
            (json.dumps(document(schema=True)), "kernelgate.schema: expected 1 to 2, found True"),
        ],
    )
    def test_the_error_names_file_and_field(self, tmp_path, text, field):
        path = stored(tmp_path, text)
        with pytest.raises(BaselineError) as caught:
            baseline.load(path)
        assert str(caught.value).startswith(f"{path}: {field}")

    def test_a_folder_is_no_baseline(self, tmp_path):
        path = tmp_path / "0001_abc.json"
        path.mkdir()
        with pytest.raises(BaselineError, match=r"0001_abc\.json: expected a JSON file"):
            baseline.load(path)

    @pytest.mark.parametrize("change", [lambda text: text[:100], lambda text: text.replace("first", "worst")])
    def test_it_is_a_usage_error_before_anything_is_measured(self, project, change):
        path = project.record("--gate-processes=1")
        path.write_text(change(path.read_text()))
        (project.path / "started").unlink()
        result = project.run("--benchmark-compare")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: *0001_*.json: *")
        assert (project.path / "started").read_text() == "x"  # collected once, and no child was started


class TestStockTools:
    def test_they_compare_baselines(self, project):
        paths = [project.record("--gate-processes=1"), project.record("--gate-processes=1")]
        command = Path(sys.executable).with_name("pytest-benchmark")  # of the same environment
        finished = subprocess.run(
            [command, "compare", *paths, "--columns=median,rounds"],
            cwd=project.path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "2 tests" in finished.stdout
        assert finished.stdout.count("1.0000") == 2

    def test_a_baseline_holds_the_samples_of_every_process(self, project):
        (benchmark,) = json.loads(project.record("--gate-processes=3").read_text())["benchmarks"]
        assert sum(benchmark["extra_info"]["rounds"]) == len(benchmark["stats"]["data"]) == benchmark["stats"]["rounds"]
        assert len(benchmark["extra_info"]["rounds"]) == 3
        assert benchmark["extra_info"]["metrics"]["latency_s"]["values"] == pytest.approx([1e-3] * 3, rel=1e-5)

    def test_a_run_that_they_saved_is_sealed_and_can_be_compared_with(self, project):
        project.run("--benchmark-json=saved.json")
        assert project.run("--benchmark-compare=saved.json", "--gate-processes=2").ret in (0, 11)
        saved = project.path / "saved.json"
        saved.write_text(saved.read_text().replace('"name": "test_work"', '"name": "test_play"'))
        result = project.run("--benchmark-compare=saved.json", "--gate-processes=2")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: *saved.json: benchmarks[[]0[]]: differs from its digest*")
