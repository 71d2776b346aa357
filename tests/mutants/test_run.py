"""The patches fit the tree, and the tool that tries them tells a killed fault from one that survived."""

import pytest

from tests.mutants import run

pytestmark = pytest.mark.correctness

SOURCE = "def double(x):\n    return 2 * x\n"
TEST = "from source import double\n\n\ndef test_double():\n    assert double(3) == 6\n"
PATCH = """Fault: {fault}
Tests: test_source.py
--- a/source.py
+++ b/source.py
@@ -1,2 +1,2 @@
 def double(x):
-    return 2 * x
+    return {code}
"""


@pytest.mark.parametrize("path", sorted(run.PATCHES.glob("*.patch")), ids=lambda path: path.stem)
def test_a_patch_fits_the_tree_and_names_tests_that_exist(path):
    mutant = run.Mutant.read(path)
    checked = run.git(run.ROOT, "apply", "--check", str(path))
    assert checked.returncode == 0, checked.stderr
    modules = [argument for argument in mutant.tests if argument.startswith("tests/")]
    assert modules
    assert all((run.ROOT / module.partition("::")[0]).exists() for module in modules)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one function and one test; faults are planted with `project(name, code)`."""
    root = tmp_path / "project"
    (root / "patches").mkdir(parents=True)
    (root / "source.py").write_text(SOURCE)
    (root / "test_source.py").write_text(TEST)
    monkeypatch.setattr(run, "ROOT", root)
    monkeypatch.setattr(run, "PATCHES", root / "patches")
    run.git(root, "init", "-q").check_returncode()

    def plant(name, code, patch=PATCH):
        (root / "patches" / f"{name}.patch").write_text(patch.format(fault=f"returns {code}", code=code))

    return plant


def test_a_fault_that_turns_a_test_red_is_killed(project, capsys):
    project("three", "3 * x")
    assert run.main(["--workers", "1"]) == 0
    assert "1 of 1 killed" in capsys.readouterr().out


def test_a_fault_that_no_test_sees_survives_and_fails_the_run(project, capsys):
    project("sum", "x + x")
    project("three", "3 * x")
    assert run.main([]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 killed" in out
    assert "SURVIVED: sum: returns x + x" in out


def test_an_endless_loop_is_killed_by_the_time_limit(project, capsys):
    project("endless", "double(x) if [None for _ in iter(int, 1)] else x")
    assert run.main(["--timeout", "8"]) == 0
    assert "time limit" in capsys.readouterr().out


def test_a_patch_that_does_not_fit_is_an_error_though_enough_others_are_killed(project, capsys):
    project("three", "3 * x")
    project("stale", "0", PATCH.replace("def double", "def triple"))
    assert run.main(["--required", "0.5"]) == 1
    assert "ERROR: stale" in capsys.readouterr().out


def test_code_that_cannot_be_imported_is_an_error_and_kills_nothing(project, capsys):
    project("syntax", "(")
    assert run.main([]) == 1
    assert "0 of 1 killed" in capsys.readouterr().out


def test_tests_that_fail_without_a_fault_are_an_error(project, capsys):
    project("three", "3 * x")
    (run.ROOT / "test_source.py").write_text(TEST.replace("6", "7"))
    assert run.main([]) == 1
    assert "without the fault" in capsys.readouterr().out


def test_a_patch_without_its_headers_is_refused(project):
    project("headless", "3 * x", PATCH.replace("Fault: ", ""))
    with pytest.raises(ValueError, match=r"headless\.patch: expected one line 'Fault: …', got 0"):
        run.main([])
