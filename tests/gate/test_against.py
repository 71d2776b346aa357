"""`--gate-against`: real commits of real repositories, measured in turn with the working tree."""

import os
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.correctness

# Says in which tree each process measures. A worktree lies in a folder of that name.
NOTING = """
    import os
    from pathlib import Path

    import clock

    tree = "base" if "worktrees" in __file__ else "current"


    def test_work(benchmark):
        with open(os.environ["LOG"], "a") as stream:
            stream.write(tree + " ")
        benchmark(clock.work, SECONDS)
"""


@pytest.fixture
def project(project):
    project.environment(LOG=project.path / "log.xml")  # a name that git ignores
    return project


def benchmarks(project, text=NOTING, seconds="1e-3"):
    project.pytester.makepyfile(test_it=text.replace("SECONDS", seconds))


def order(project):
    return (project.path / "log.xml").read_text().split()


def against(project, reference="HEAD", *arguments):
    return project.run(f"--gate-against={reference}", "--gate-processes=2", *arguments)


def git(project, *arguments):
    return subprocess.run(
        ["git", *arguments], cwd=project.path, check=True, capture_output=True, text=True
    ).stdout.strip()


def assert_no_worktree_is_left(project):
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert list((project.path / ".kernelgate" / "worktrees").glob("[0-9a-f]*")) == []


class TestComparison:
    def test_a_tree_is_the_same_as_itself(self, project):
        benchmarks(project)
        project.commit()
        result = against(project)
        assert result.ret == 0
        commit = git(project, "rev-parse", "HEAD")[:10]
        result.stdout.fnmatch_lines(
            [
                "kernelgate: base process 1 of 2: 1 of 1 benchmarks *",
                "kernelgate: current process 1 of 2: 1 of 1 benchmarks *",
                "kernelgate: current process 2 of 2: 1 of 1 benchmarks *",
                "kernelgate: base process 2 of 2: 1 of 1 benchmarks *",
                "1 SAME *",
                f"commit {commit} (HEAD), alternating with it on the same device",
            ]
        )
        assert order(project) == ["base", "current", "current", "base"]
        assert git(project, "status", "--porcelain") == ""
        assert_no_worktree_is_left(project)

    def test_a_slowdown_of_the_working_tree_is_red(self, project):
        benchmarks(project)
        project.commit()
        benchmarks(project, seconds="2e-3")
        result = against(project)
        assert result.ret == 1
        result.stdout.fnmatch_lines("REGRESSED: latency_s: 2.000 ms, was 1.000 ms: +100 %*")
        assert_no_worktree_is_left(project)

    def test_what_drifts_is_no_slowdown(self, project):
        """Each process is 10 % slower than the one before it, whichever tree it measures."""
        benchmarks(
            project,
            """
            import os

            import clock

            def test_work(benchmark):
                number = os.path.getsize(os.environ["LOG"]) if os.path.exists(os.environ["LOG"]) else 0
                with open(os.environ["LOG"], "a") as stream:
                    stream.write("x")
                benchmark(clock.work, 1e-3 * 1.1**number)
            """,
        )
        project.commit()
        result = against(project)
        result.stdout.re_match_lines(r"\s+test_work .* [+-]0\.0 % \[")

    def test_any_name_of_a_commit_will_do(self, project):
        benchmarks(project, seconds="2e-3")
        project.commit()
        git(project, "tag", "slow")
        benchmarks(project, seconds="1e-3")
        project.commit()
        result = against(project, "slow")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["1 IMPROVED *", "commit * (slow), *"])


class TestBenchmarksOfOneSide:
    def test_a_new_one_passes_and_is_named(self, project):
        benchmarks(project)
        project.commit()
        benchmarks(project, NOTING + "\n\n    def test_new(benchmark):\n        benchmark(clock.work)\n")
        result = against(project)
        assert result.ret == 0
        result.assert_outcomes(passed=2)
        commit = git(project, "rev-parse", "HEAD")[:10]
        result.stdout.fnmatch_lines(
            ["NEW *", "  test_new *", f"*not in {commit}, or it fails there", "1 NEW, 1 SAME *"]
        )

    def test_a_missing_one_fails(self, project):
        benchmarks(project, NOTING + "\n\n    def test_gone(benchmark):\n        benchmark(clock.work)\n")
        project.commit()
        benchmarks(project)
        result = against(project, "HEAD", "-rf")
        assert result.ret == 1
        result.stdout.fnmatch_lines("FAILED test_it.py::test_gone - MISSING*")

    def test_one_that_fails_in_the_commit_has_nothing_to_be_compared_with(self, project):
        benchmarks(project, NOTING + "        assert tree == 'current', 'it used to be wrong'\n")
        project.commit()
        result = against(project)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*it used to be wrong*", "*not in *, or it fails there"])
        assert_no_worktree_is_left(project)

    def test_one_that_fails_in_the_working_tree_fails(self, project):
        benchmarks(project, NOTING + "        assert tree == 'base', 'wrong now'\n")
        project.commit()
        result = against(project)
        assert result.ret == 1
        result.stdout.fnmatch_lines("FAILED test_it.py::test_work - Failed: AssertionError: wrong now*")
        assert_no_worktree_is_left(project)


class TestCommits:
    def test_one_that_is_not_here_is_named_with_what_to_fetch(self, project):
        project.commit()
        result = against(project, "topic")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            "ERROR: --gate-against: expected a commit of this clone, found 'topic'; git fetch origin topic"
        )

    def test_a_shallow_clone_is_told_to_deepen(self, project, monkeypatch):
        project.commit()
        old = git(project, "rev-parse", "HEAD")
        project.commit()
        git(project, "clone", "-q", "--depth", "1", f"file://{project.path}", "clone")
        monkeypatch.chdir(project.path / "clone")
        result = against(project, old)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            f"ERROR: --gate-against: expected a commit of this clone, found '{old}'; this clone is shallow: "
            f"git fetch --unshallow, or git fetch --depth 1 origin {old}"
        )

    def test_a_folder_without_a_repository_is_an_error(self, project):
        result = against(project)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: --gate-against*: expected a commit*")

    @pytest.mark.parametrize("left", ["worktree", "folder"])
    def test_what_a_killed_run_left_is_replaced(self, project, left):
        benchmarks(project)
        project.commit()
        path = project.path / ".kernelgate" / "worktrees" / git(project, "rev-parse", "HEAD")[:12]
        if left == "worktree":
            git(project, "worktree", "add", "-q", "--detach", str(path))
            (path / "test_it.py").write_text("wrong")
        else:
            path.mkdir(parents=True)
            (path / "junk").touch()
        result = against(project)
        assert result.ret == 0
        assert_no_worktree_is_left(project)


class TestPaths:
    HELPER = "import clock\n\ndef call():\n    clock.work(SECONDS)\n"

    def layout(self, project):
        """A benchmark in one folder that imports a module from another."""
        for name in ("lib", "tests"):
            (project.path / name).mkdir()
        (project.path / "test_it.py").unlink()
        (project.path / "tests" / "test_it.py").write_text(
            "import helper\n\ndef test_work(benchmark):\n    benchmark(helper.call)\n"
        )
        self.slow_down(project, "1e-3")

    def slow_down(self, project, seconds):
        (project.path / "lib" / "helper.py").write_text(self.HELPER.replace("SECONDS", seconds))

    def test_the_import_path_and_arguments_are_moved_to_the_commits_tree(self, project, monkeypatch):
        self.layout(project)
        monkeypatch.setenv("PYTHONPATH", str(project.path / "lib"), prepend=os.pathsep)
        project.commit()
        self.slow_down(project, "2e-3")
        result = against(project, "HEAD", str(project.path / "tests" / "test_it.py"))
        assert result.ret == 1
        result.stdout.fnmatch_lines("REGRESSED: latency_s: 2.000 ms, was 1.000 ms: +100 %*")

    def test_modules_of_the_working_tree_are_refused(self, project):
        self.layout(project)
        with (project.path / "conftest.py").open("a") as stream:  # as an editable installation does
            stream.write(f"\nimport sys\nsys.path.insert(0, {str(project.path / 'lib')!r})\n")
        project.commit()
        result = against(project)
        assert result.ret == 1
        result.stdout.fnmatch_lines(
            [
                "*--gate-against: helper would be imported from the current tree, not from the commit's; let pytest's "
                "ini key pythonpath name the folders to import from",
                "not measured: base process 1 of 2 ended with exit status 4",
            ]
        )
        assert_no_worktree_is_left(project)

    def test_pytests_own_import_path_is_that_of_either_tree(self, project):
        self.layout(project)
        project.configure(pythonpath="lib")
        project.commit()
        self.slow_down(project, "2e-3")
        result = against(project)
        assert result.ret == 1
        result.stdout.fnmatch_lines("REGRESSED: latency_s: 2.000 ms, was 1.000 ms: +100 %*")

    def test_the_project_may_be_a_folder_of_the_repository(self, project, monkeypatch):
        benchmarks(project)
        project.commit()
        folder = project.path / "project"
        folder.mkdir()
        for path in project.path.iterdir():
            if path.suffix in (".py", ".ini"):
                shutil.move(path, folder)
        project.commit()
        (folder / "test_it.py").write_text((folder / "test_it.py").read_text().replace("1e-3", "2e-3"))
        monkeypatch.chdir(folder)
        result = against(project)
        assert result.ret == 1
        result.stdout.fnmatch_lines("REGRESSED: latency_s: 2.000 ms, was 1.000 ms: +100 %*")
        assert order(project) == ["base", "current", "current", "base"]
        assert len(git(project, "worktree", "list").splitlines()) == 1
