from pathlib import Path
from types import SimpleNamespace

import pytest

from kernelgate.scope import in_scope

pytestmark = pytest.mark.correctness

KNOWN = ["perf/test_scan.py::test_it[a]", "perf/test_scan.py::test_it[b]", "perf/test_scanner.py::TestX::test_y"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([""], KNOWN),
        (["."], KNOWN),
        ([".."], KNOWN),
        (["perf"], KNOWN),
        (["perf/"], KNOWN),
        (["perf/test_scan.py"], KNOWN[:2]),
        (["perf/test_scan.py::test_it"], KNOWN[:2]),
        (["perf/test_scan.py::test_it[a]"], KNOWN[:1]),
        (["perf/test_scanner.py::TestX"], KNOWN[2:]),
        (["other"], []),
        (["../elsewhere"], []),
        (["module.under.pyargs"], KNOWN),
    ],
)
def test_entries_under_the_named_paths_are_in_scope(tmp_path, arguments, expected):
    assert in_scope(config(tmp_path, arguments), KNOWN) == expected


def test_ignored_paths_are_not(tmp_path):
    assert in_scope(config(tmp_path, ["perf"], ignore=["perf/test_scan.py"]), KNOWN) == KNOWN[2:]


def config(tmp_path, arguments, ignore=()):
    root = tmp_path / "root"
    for path in ("perf/test_scan.py", "perf/test_scanner.py", "other/test_it.py", "../elsewhere/test_it.py"):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return SimpleNamespace(
        args=arguments,
        rootpath=root,
        invocation_params=SimpleNamespace(dir=Path(root)),
        getoption=lambda name: list(ignore),
    )
