"""pytest-benchmark's own tests, with the plugin loaded and without: `python -m tests.stock`, or `tox -e stock`.

Exit status 0: the plugin changes the outcome of exactly the tests that `cannot_apply` lists. The tests are those of the
source distribution; none of them is kept here. Takes about ten minutes.
"""

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
from pathlib import Path

from tests.stock import suite
from tests.stock.cannot_apply import CANNOT_APPLY
from tests.stock.differences import differences

# What the suite imports, or names in its configuration.
NEEDED = ("aspectlib", "elasticsearch", "freezegun", "nbmake", "pygal", "pygaljs", "pytest_benchmark", "xdist")


def main(arguments: list[str]) -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.stock", description=__doc__)
    parser.add_argument("--sdist", type=Path, help="the source distribution, if it need not be downloaded")
    parser.add_argument("-k", metavar="EXPRESSION", help="only these tests, as pytest selects them")
    options = parser.parse_args(arguments)
    if unfit := _unfit():
        parser.error(f"{unfit}; run `tox -e stock`, which makes an environment for it")
    selection = ["-k", options.k] if options.k else []
    with tempfile.TemporaryDirectory(prefix="stock-") as folder:
        tests = suite.unpack(options.sdist or suite.download(Path(folder)), Path(folder))
        without = suite.run(tests, selection, with_plugin=False)
        print(f"without the plugin: {_counted(without)}", flush=True)
        loaded = suite.run(tests, selection, with_plugin=True)
        print(f"with the plugin: {_counted(loaded)}", flush=True)
    listed = {test: reason for test, reason in CANNOT_APPLY.items() if not options.k or test in without}
    problems = differences(without, loaded, listed)
    for test in sorted(set(without) & set(loaded)):
        if without[test].failed:
            print(f"fails without the plugin as well: {test}")
        elif loaded[test].failed and test in listed:
            print(f"cannot apply: {test}: {listed[test]}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _unfit() -> str | None:
    """Why this environment cannot tell the two runs apart, if so."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if "kernelgate.plugin" in importlib.metadata.entry_points(group="pytest11").names:
        return "the plugin is installed here, so there is no run without it"
    version = importlib.metadata.version("pytest-benchmark")
    if version != suite.VERSION:
        return f"expected pytest-benchmark {suite.VERSION}, whose tests these are, found {version}"
    return None


def _counted(outcomes: dict[str, suite.Outcome]) -> str:
    counts = {
        kind: sum(outcome.kind == kind for outcome in outcomes.values()) for kind in ("passed", "failed", "skipped")
    }
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
