"""`--gate-resume`: a run that was interrupted goes on with what its processes measured."""

import json
import shutil
import signal
import subprocess
from types import SimpleNamespace

import pytest

from kernelgate import resume
from kernelgate.machine import Machine

pytestmark = pytest.mark.correctness

# Interrupted while its third process sleeps; without the file that says so it runs through.
SLEEPING = """
    import os
    import time
    from pathlib import Path

    import clock


    def test_work(benchmark):
        if clock.process == 3 and os.environ.get("SLEEP"):
            Path("asleep.xml").touch()
            time.sleep(60)
        benchmark(clock.work)


    def test_more(benchmark):
        benchmark(clock.work)
"""


@pytest.fixture
def project(project):
    project.pytester.makepyfile(test_it=SLEEPING)
    return project


@pytest.fixture
def interrupted(project):
    """A comparison with a baseline that ended in its third process."""
    baseline = project.record()
    (project.path / "started").unlink()
    project.environment(SLEEP=1)
    process = project.start("--benchmark-compare", "--gate-processes=4")
    project.wait_for("asleep.xml")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == pytest.ExitCode.INTERRUPTED
    project.environment(SLEEP="")
    assert project.baselines() == [baseline]
    return project


def resumed(project):
    """The exit code and the output of the rest of the run."""
    process = project.start("--benchmark-compare", "--gate-processes=4", "--gate-resume")
    return process.wait(timeout=60), pytest.LineMatcher((project.path / "stdout").read_text().splitlines())


def started(project):
    """How many processes have imported the clock: those that measure, and those that assert."""
    return len((project.path / "started").read_text())


class TestGoingOn:
    def test_only_what_is_left_is_measured(self, interrupted):
        before = started(interrupted)
        code, output = resumed(interrupted)
        assert code == 0
        output.fnmatch_lines(
            [
                "kernelgate: going on with the run in *",
                "kernelgate: process 1 of 4: 2 of 2 benchmarks in * s, exit status 0 *",
                "kernelgate: process 2 of 4: 2 of 2 benchmarks in * s, exit status 0 *",
                "kernelgate: process 4 of 4: 2 of 2 benchmarks in * s, exit status 0 *",
                "2 SAME *",
            ]
        )
        assert started(interrupted) == before + 1 + 2  # itself, and the third and fourth process

        # What went through can be looked at again without measuring.
        before = started(interrupted)
        code, output = resumed(interrupted)
        assert code == 0
        output.fnmatch_lines("2 SAME *")
        assert started(interrupted) == before + 1

    def test_a_new_run_starts_from_nothing(self, interrupted):
        before = started(interrupted)
        result = interrupted.run("--benchmark-compare", "--gate-processes=4")
        assert result.ret == 0
        assert "going on" not in result.stdout.str()
        assert started(interrupted) == before + 1 + 4

    def test_a_process_that_nothing_explains_is_measured_again(self, interrupted):
        """Perhaps it ran out of memory or disk. What a benchmark itself did would only happen again."""
        for number, events in enumerate(
            [
                [{"event": "end", "exit_status": "exit status 2", "seconds": 1.0}],
                [
                    {"event": "collected", "nodeids": ["test_it.py::test_work", "test_it.py::test_more"]},
                    {"event": "failed", "nodeid": "test_it.py::test_more", "reason": "wrong before"},
                    {"event": "end", "exit_status": "exit status 1", "seconds": 1.0},
                ],
            ]
        ):
            path = interrupted.path / ".kernelgate" / "runs" / f"current-{number:03}.jsonl"
            request, *_ = path.read_text().splitlines()
            path.write_text("\n".join([request, *map(json.dumps, events)]) + "\n")
        code, output = resumed(interrupted)
        assert code == 1
        output.fnmatch_lines(
            [
                "kernelgate: process 1 of 4: 2 of 2 benchmarks in * s, exit status 0 *",
                "kernelgate: process 2 of 4: 0 of 2 benchmarks in 1.0 s, exit status 1 *",
                "FAILED test_it.py::test_more - Failed: wrong before",
            ]
        )


class TestRefusal:
    @pytest.fixture
    def tree(self, tmp_path):
        """A repository with a file in it, in which a run has begun."""
        (tmp_path / ".gitignore").write_text(".kernelgate/\nignored\n")
        (tmp_path / "kernel.py").write_text("fast")
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")
        for command in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "first")):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
        begin(tmp_path)
        return tmp_path

    def test_an_unchanged_run_goes_on_with_what_it_has(self, tree):
        results = tree / ".kernelgate" / "runs" / "current-000.jsonl"
        results.write_text("[]\n")
        assert go_on(tree) == results.parent
        assert results.exists()
        begin(tree)
        assert not results.exists()

    @pytest.mark.parametrize("name", ["kernel.py", "new.py"])
    def test_a_changed_tree_is_refused(self, tree, name):
        (tree / name).write_text("slow")
        with pytest.raises(pytest.UsageError, match="the interrupted run was another one; tree differ"):
            go_on(tree)

    @pytest.mark.parametrize("name", ["ignored", "junit.xml", "gate.md", "b.json"])
    def test_what_git_ignores_and_what_the_run_wrote_change_nothing(self, tree, name):
        (tree / name).write_text("slow")
        go_on(tree)

    def test_another_commit_is_refused(self, tree):
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")
        subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "second"], cwd=tree, check=True)
        with pytest.raises(pytest.UsageError, match="tree differ"):
            go_on(tree)

    @pytest.mark.parametrize(
        ("other", "differing"),
        [
            ({"arguments": ["-k", "other"]}, "arguments"),
            ({"processes": 8}, "processes"),
            ({"machine": "other-box"}, "machine"),
            ({"base_commit": "0123456789"}, "base"),
            ({"arguments": [], "processes": 8}, "arguments, processes"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_another_run_is_refused_with_what_differs(self, tree, other, differing):
        with pytest.raises(pytest.UsageError, match=f"the interrupted run was another one; {differing} differ"):
            go_on(tree, **other)

    def test_another_toolchain_is_refused(self, tree, monkeypatch):
        monkeypatch.setattr(resume, "toolchain", lambda: {"python": "2.7"})
        with pytest.raises(pytest.UsageError, match="toolchain differ"):
            go_on(tree)

    @pytest.mark.parametrize("text", [None, "", "[]"], ids=["none", "empty", "foreign"])
    def test_without_a_run_there_is_nothing_to_go_on_with(self, tree, text):
        about = tree / ".kernelgate" / "runs" / "about.json"
        about.unlink()
        if text is not None:
            about.write_text(text)
        with pytest.raises(
            pytest.UsageError, match=r"--gate-resume: expected an interrupted run in .*runs, found none"
        ):
            go_on(tree)

    def test_a_tree_without_git_could_have_changed_unseen(self, tree):
        shutil.rmtree(tree / ".git")
        begin(tree)
        with pytest.raises(pytest.UsageError, match="--gate-resume: expected a git repository with a commit"):
            go_on(tree)

    def test_it_is_a_usage_error(self, project):
        result = project.run("--gate-processes=2", "--gate-resume")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: --gate-resume: expected an interrupted run in *runs, found none")


def begin(root, **other):
    return prepare(root, resuming=False, **other)


def go_on(root, **other):
    return prepare(root, resuming=True, **other)


def prepare(root, *, resuming, arguments=("-m", "perf"), processes=4, machine="box", base_commit=""):
    arguments = [*arguments, *(["--gate-resume"] if resuming else [])]
    found = resume.facts(
        SimpleNamespace(
            rootpath=root,
            invocation_params=SimpleNamespace(args=arguments, dir=root),
            option=SimpleNamespace(
                xmlpath="junit.xml",
                gate_markdown="gate.md",
                gate_json=None,
                benchmark_json=SimpleNamespace(name="b.json"),
            ),
        ),
        SimpleNamespace(processes=processes),
        Machine(name=machine, device={"type": "cpu"}),
        base_commit,
    )
    return resume.prepare_folder(root / ".kernelgate", found, resuming=resuming, write_line=lambda line: None)
