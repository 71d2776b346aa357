import builtins
import importlib
import json
import os
import subprocess
import sys
import tomllib

import pytest

from kernelgate import commands
from tests.gate.conftest import ROOT
from tests.gate.documents import document, entry, metric, stored

pytestmark = pytest.mark.correctness

IDENTITY = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")


class Command:
    """The command in a project with baselines of two classes of machines, run in this process."""

    def __init__(self, path, capsys):
        self.path = path
        self.box = path / "stored" / "test-box"
        self._capsys = capsys
        self.out = self.error = ""
        (path / "pytest.ini").write_text("[pytest]\ngate_baselines = stored\n")
        for number, reason in enumerate(("first", "faster tiles", "a new kernel"), 1):
            block = {"schema": 2, "machine_class": "test-box", "toolchain": {}, "reason": reason}
            content = document(*(entry(f"test_{name}[a-1]") for name in "abc"[:number]), kernelgate=block)
            stored(self.box, json.dumps(content), f"{number:04}_abc.json")
        stored(path / "stored" / "other-box", json.dumps(document(schema=1)), "0001_abc.json")
        (path / "stored" / "aot" / "triton").mkdir(parents=True)

    def __call__(self, *arguments):
        """Run it and return its exit status."""
        try:
            status = commands.main(["baseline", *arguments])
        except SystemExit as end:
            status = end.code
        self.out, self.error = self._capsys.readouterr()
        return status

    def fails(self, *arguments):
        """Run it, expecting an error, and return its only line."""
        assert self(*arguments) == 2
        (line,) = self.error.splitlines()
        assert line.startswith("kernelgate")
        return line

    def commit(self):
        for command in (("init", "-q"), ("add", "-A"), (*IDENTITY, "commit", "-q", "-m", "baselines")):
            subprocess.run(["git", *command], cwd=self.path, check=True)

    def files(self):
        return sorted(path.name for path in self.box.iterdir())


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return Command(tmp_path, capsys)


def row(output, start):
    """The cells of the line that begins with a text."""
    (line,) = (line for line in output.splitlines() if line.split()[:1] == [start])
    return line.split()


class TestList:
    def test_it_names_every_file_of_every_class(self, command):
        assert command("list") == 0
        assert command.error == ""
        titles = [line.strip() for line in command.out.splitlines() if line.strip().endswith("-box")]
        assert titles == ["other-box", "test-box"]
        assert row(command.out, "0002") == ["0002", "0123456789", "2026-11-22", "2", "2", "faster", "tiles"]
        assert row(command.out, "0003") == ["0003", "0123456789", "2026-11-22", "3", "2", "a", "new", "kernel"]

    def test_a_class_can_be_chosen(self, command):
        assert command("list", "--machine", "other-box") == 0
        assert "because" in command.out
        assert "test-box" not in command.out

    def test_different_numbers_of_processes_are_a_range(self, command):
        five = entry("test_more", latency_s=metric(*[1e-3] * 5))
        five["extra_info"]["rounds"] = [1] * 5
        five["stats"]["data"] = [1e-3] * 5
        stored(command.box, json.dumps(document(entry(), five)), "0004_abc.json")
        command("list")
        assert row(command.out, "0004")[4:7] == ["2", "to", "5"]

    def test_a_broken_file_hides_no_other(self, command):
        (command.box / "0002_abc.json").write_text("{")
        error = command.fails("list")
        assert "0002_abc.json: expected a JSON file" in error
        assert row(command.out, "0002")[2:] == ["cannot", "be", "read"]
        assert row(command.out, "0003")[-1] == "kernel"

    def test_another_folder_can_be_named(self, command):
        stored(command.path / "elsewhere" / "far-box", json.dumps(document()))
        assert command("list", "--baselines", "elsewhere") == 0
        assert "far-box" in command.out
        assert "test-box" not in command.out

    def test_it_works_below_the_root_of_the_project(self, command, monkeypatch):
        (command.path / "tests").mkdir()
        monkeypatch.chdir(command.path / "tests")
        assert command("list") == 0
        assert "test-box" in command.out

    def test_the_default_is_the_default_of_the_ini_key(self, command):
        (command.path / "stored").rename(command.path / "perf_baselines")
        (command.path / "pytest.ini").write_text("[pytest]\n")
        assert command("list") == 0
        assert "test-box" in command.out

    def test_a_folder_without_baselines_has_none(self, command):
        (command.path / "empty").mkdir()
        assert command("list", "--baselines", "empty") == 0
        assert "no baselines in" in command.out

    def test_a_missing_folder_is_an_error(self, command):
        assert "nowhere: expected the folder of the baselines" in command.fails("list", "--baselines", "nowhere")


class TestShow:
    def test_it_shows_the_newest(self, command):
        assert command("show", "--machine", "test-box") == 0
        assert command.out.startswith(
            "0003_abc.json: commit 0123456789abcdef, recorded 2026-11-22 09:59 UTC on machine "
        )
        assert "schema 2, content matches its checksum. Reason: a new kernel\n" in command.out
        name, *cells = row(command.out, "test_c[a-1]")
        assert name == "test_c[a-1]"  # and no markup
        assert cells == ["1.005", "ms", "0.7", "%", "2", "4.000", "KiB", "0.002"]
        assert "toolchain: python 3.11.7, triton 3.7.1" in command.out

    def test_a_number_or_a_file_selects_another(self, command):
        for selector in ("1", "0001", "0001_abc.json", "stored/test-box/0001_abc.json"):
            assert command("show", selector, "--machine", "test-box") == 0
            assert command.out.startswith("0001_abc.json")

    def test_different_toolchains_are_told_apart(self, command):
        old = entry("test_old")
        old["extra_info"]["toolchain"] = {"python": "3.11.7", "triton": "3.6.0"}
        stored(command.box, json.dumps(document(entry(), old)), "0004_abc.json")
        assert command("show", "--machine", "test-box") == 0
        assert row(command.out, "test_old")[-1] == "1"
        assert row(command.out, "test_work")[-1] == "2"
        captions = [line.strip() for line in command.out.splitlines()[-2:]]
        assert captions == [
            f"toolchain {number}: python 3.11.7, triton 3.{number + 5}.{number - 1}" for number in (1, 2)
        ]

    def test_the_class_is_the_one_of_the_project(self, command):
        (command.path / "pytest.ini").write_text("[pytest]\ngate_baselines = stored\ngate_machine = other-box\n")
        assert command("show") == 0
        assert "on machine class test-box, schema 1, without a checksum" in command.out

    def test_the_class_is_the_only_one_there_is(self, command):
        (command.path / "stored" / "other-box" / "0001_abc.json").unlink()
        assert command("show") == 0
        assert command.out.startswith("0003_abc.json")

    def test_among_several_it_is_the_one_of_this_machine(self, command, monkeypatch):
        monkeypatch.setattr(commands, "detect", lambda: type("Machine", (), {"name": "other-box"}))
        assert command("show") == 0
        assert command.out.startswith("0001_abc.json")

    def test_an_unknown_class_or_number_is_an_error_that_lists_what_there_is(self, command):
        assert "no baseline for machine class x in" in command.fails("show", "--machine", "x")
        assert command.error.endswith("there are: other-box, test-box\n")
        assert "match '7'; there are: 0001_abc.json, 0002" in command.fails("show", "7", "--machine", "test-box")

    def test_an_edited_file_is_an_error(self, command):
        path = command.box / "0003_abc.json"
        path.write_text(path.read_text().replace("a new kernel", "no new kernel"))
        assert f"{path}: kernelgate: differs from its digest" in command.fails("show", "--machine", "test-box")
        assert command.out == ""


class TestPrune:
    KEEP = ("prune", "--machine=test-box", "--keep")

    def test_the_newest_stay(self, command):
        command.commit()
        assert command(*self.KEEP, "2", "--yes") == 0
        assert command.files() == ["0002_abc.json", "0003_abc.json"]
        assert f"remove {command.box / '0001_abc.json'}\n" in command.out
        assert (command.path / "stored" / "other-box" / "0001_abc.json").exists()

    @pytest.mark.parametrize(("answer", "status", "left"), [("y", 0, 1), ("n", 1, 3), ("", 1, 3)])
    def test_it_asks(self, command, monkeypatch, answer, status, left):
        command.commit()
        asked = []
        monkeypatch.setattr(builtins, "input", lambda *prompt: asked.append(prompt) or answer)
        assert command(*self.KEEP, "1") == status
        assert len(asked) == 1
        assert len(command.files()) == left

    def test_where_nobody_can_be_asked_it_removes_nothing(self, command, monkeypatch):
        def nobody(*_):
            raise EOFError

        command.commit()
        monkeypatch.setattr(builtins, "input", nobody)
        assert "--yes: expected where nobody can be asked" in command.fails(*self.KEEP, "1").replace("\n", "")
        assert len(command.files()) == 3

    @pytest.mark.parametrize("keep", ["0", "-1", "two"])
    def test_the_newest_is_never_removed(self, command, keep):
        command.commit()
        assert f"expected a positive number, found '{keep}'" in command.fails(
            *self.KEEP[:-1], f"--keep={keep}", "--yes"
        )
        assert len(command.files()) == 3

    def test_nothing_to_remove_is_no_error(self, command):
        assert command(*self.KEEP, "3", "--yes") == 0
        assert command.out.startswith("nothing to remove: ")
        assert len(command.files()) == 3

    def test_a_file_that_git_cannot_bring_back_stays(self, command):
        assert "0001_abc.json, 0002_abc.json" in command.fails(*self.KEEP, "1", "--yes")  # there is no repository
        command.commit()
        path = command.box / "0002_abc.json"
        path.write_text(path.read_text() + "\n")
        error = command.fails(*self.KEEP, "1", "--yes")
        assert error.endswith("expected files that git can bring back, found 0002_abc.json")
        stored(command.box, json.dumps(document()), "0004_abc.json")
        stored(command.box, json.dumps(document()), "0005_abc.json")
        assert "found 0002_abc.json, 0004_abc.json" in command.fails(*self.KEEP, "1", "--yes")
        assert len(command.files()) == 5

    def test_it_takes_turns_with_a_recording(self, command, monkeypatch):
        held = []
        monkeypatch.setattr(commands, "remove", lambda paths, *, lock: held.append(lock))
        command.commit()
        command(*self.KEEP, "1", "--yes")
        assert held == [command.path / ".kernelgate" / "baselines.lock"]


class TestUpdate:
    CLOCK = ("-p", "pytest_benchmark.plugin", "--benchmark-timer=clock.now", "--benchmark-max-time=0.005")

    def update(self, project, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "kernelgate", "baseline", "update", *arguments],
            cwd=project.path,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_it_adds_a_baseline(self, project):
        project.commit()
        finished = self.update(project, "--reason=faster tiles", "--processes", "2", "--", *self.CLOCK, "test_it.py")
        assert finished.returncode == 0, finished.stdout + finished.stderr
        (path,) = project.baselines()
        content = json.loads(path.read_text())
        assert content["kernelgate"]["reason"] == "faster tiles"
        assert len(content["benchmarks"][0]["extra_info"]["rounds"]) == 2

    def test_it_goes_where_it_is_told(self, project):
        project.commit()
        options = ("--reason=why", "--processes=1", "--baselines=elsewhere")
        assert self.update(project, *options, "--", *self.CLOCK).returncode == 0
        assert len(list((project.path / "elsewhere" / "test-box").iterdir())) == 1
        assert project.baselines() == []

    def test_a_dirty_tree_is_refused(self, project):
        project.commit()
        (project.path / "kernel.py").touch()
        finished = self.update(project, "--reason=why", "--", *self.CLOCK)
        assert finished.returncode == pytest.ExitCode.USAGE_ERROR
        assert "uncommitted changes" in finished.stderr
        assert project.baselines() == []

    def test_a_failing_run_is_refused(self, project):
        project.pytester.makepyfile(test_other="def test_other(): assert False")
        project.commit()
        finished = self.update(project, "--reason=why", "--processes=1", "--", *self.CLOCK)
        assert finished.returncode == pytest.ExitCode.TESTS_FAILED
        assert project.baselines() == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "the following arguments are required: --reason"),
            (("--reason", " "), "argument --reason: expected the reason for the new baseline, found nothing"),
            (("--reason=why", "--processes=0"), "argument --processes: expected a positive number, found '0'"),
        ],
    )
    def test_what_makes_no_sense_is_an_error_before_pytest_starts(self, command, arguments, message):
        assert command.fails("update", *arguments).endswith(message)


class TestEntry:
    def test_the_module_can_be_run(self, command):
        finished = subprocess.run(
            [sys.executable, "-m", "kernelgate", "baseline", "show", "--machine=x"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 2
        assert finished.stderr.startswith("kernelgate: error: no baseline for machine class x in ")

    def test_the_script_is_the_same(self):
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        module, _, function = scripts["kernelgate"].partition(":")
        assert getattr(importlib.import_module(module), function) is commands.main

    def test_without_a_command_it_says_what_is_missing(self, command):
        assert "the following arguments are required: ACTION" in command.fails()
