"""Plant faults, one at a time, and see whether the tests that touch the file notice: `tox -e mutants`.

Each fault is a patch in `patches/`, headed by two lines: `Fault:`, what is wrong in words, and `Tests:`, the pytest
arguments of the tests that must turn red. A fault is killed by failing tests, a crash or a time limit, and by nothing
else: tests that cannot be collected or run are an error of the patch. Before any fault, all those tests must pass.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Self

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
PATCHES = Path(__file__).parent / "patches"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "--no-header", "-p", "no:cacheprovider"]
RED, GREEN = 1, 0  # pytest's exit statuses for failed tests and for none


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One fault and the tests that have to see it."""

    path: Path
    fault: str
    tests: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a patch file.

        Raises:
            ValueError: a header is missing.
        """
        lines = path.read_text().splitlines()
        fields = {}
        for name in ("Fault", "Tests"):
            found = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]
            if len(found) != 1:
                raise ValueError(f"{path.name}: expected one line '{name}: …', got {len(found)}")
            fields[name] = found[0]
        return cls(path=path, fault=fields["Fault"], tests=tuple(shlex.split(fields["Tests"])))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    verdict: str  # killed, killed (time limit), SURVIVED or ERROR
    seconds: float
    detail: str = ""

    @property
    def killed(self) -> bool:
        """Whether the tests noticed."""
        return self.verdict.startswith("killed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 0 if enough mutants were killed and every patch applied."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="patches to try, by a part of their name; all by default")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="mutants tried at once")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="limit of one mutant")
    parser.add_argument("--required", type=float, default=0.95, metavar="FRACTION", help="mutants to be killed")
    options = parser.parse_args(arguments)
    mutants = [Mutant.read(path) for path in sorted(PATCHES.glob("*.patch"))]
    mutants = [m for m in mutants if not options.names or any(name in m.path.stem for name in options.names)]
    if not mutants:
        parser.error(f"names: no patch in {PATCHES} matches {options.names}")
    outcomes = try_all(mutants, options.workers, options.timeout)
    return report(outcomes, options.required)


def try_all(mutants: Sequence[Mutant], workers: int, timeout: float) -> list[Outcome]:
    """Try every mutant, `workers` at a time, each worker in a copy of the tree; selections first without a fault."""
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as progress:
        trees: Queue[Path] = Queue()
        for number in range(workers):
            trees.put(copy_of_the_tree(Path(scratch) / str(number)))
        selections = sorted({mutant.tests for mutant in mutants})
        task = progress.add_task("mutants", total=len(selections) + len(mutants))

        def healthy(tests: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
            with borrowed(trees) as tree:
                status, output = run_tests(tree, tests, timeout)
            progress.advance(task)
            return tests, "" if status == GREEN else f"without the fault: exit status {status}: {last_line(output)}"

        def attempt(mutant: Mutant) -> Outcome:
            with borrowed(trees) as tree:
                outcome = try_one(mutant, tree, timeout, broken[mutant.tests])
            progress.advance(task)
            return outcome

        with ThreadPoolExecutor(workers) as pool:
            broken = dict(pool.map(healthy, selections))
            return list(pool.map(attempt, mutants))


def try_one(mutant: Mutant, tree: Path, timeout: float, broken: str) -> Outcome:
    """Plant one fault in a tree, run its tests, take the fault out again."""
    start = time.monotonic()
    if broken:
        return Outcome(mutant=mutant, verdict="ERROR", seconds=0.0, detail=broken)
    planted = git(tree, "apply", str(mutant.path))
    if planted.returncode:
        return Outcome(mutant=mutant, verdict="ERROR", seconds=0.0, detail=planted.stderr.strip())
    try:
        status, output = run_tests(tree, mutant.tests, timeout)
    finally:
        git(tree, "apply", "--reverse", str(mutant.path))
    if status is not None and status < 0:  # a crash of the interpreter: an address that is not mapped
        status, output = RED, f"FAILED signal {signal.Signals(-status).name}"
    verdict, detail = {
        None: ("killed (time limit)", ""),
        RED: ("killed", last_line(output, "FAILED")),
        GREEN: ("SURVIVED", ""),
    }.get(status, ("ERROR", f"exit status {status}: {last_line(output)}"))
    return Outcome(mutant=mutant, verdict=verdict, seconds=time.monotonic() - start, detail=detail)


def run_tests(tree: Path, tests: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """Pytest's exit status, or None past the time limit, and its output."""
    # One thread each: several run at once. A failure need not be made small, only seen.
    env = {**os.environ, "HYPOTHESIS_PROFILE": "unshrunk", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # The tree itself comes first, before an installed copy of the project.
    env["PYTHONPATH"] = os.pathsep.join([str(tree), str(tree / "kernels"), env.get("PYTHONPATH", "")])
    try:
        done = subprocess.run([*PYTEST, *tests], cwd=tree, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def copy_of_the_tree(target: Path) -> Path:
    """Every file that git tracks or would track, as it is now, in a repository of its own."""
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed.check_returncode()
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    git(target, "init", "-q").check_returncode()  # or `git apply` would obey a repository further up
    return target


def git(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in a tree."""
    return subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=False)


@contextmanager
def borrowed(trees: "Queue[Path]") -> Iterator[Path]:
    """A tree that nobody else works in."""
    tree = trees.get()
    try:
        yield tree
    finally:
        trees.put(tree)


def last_line(output: str, start: str = "") -> str:
    """The last line of an output that begins with `start`, without its beginning."""
    lines = [line for line in output.splitlines() if line.startswith(start) and line.strip()]
    return lines[-1].removeprefix(start).strip() if lines else ""


def report(outcomes: Sequence[Outcome], required: float) -> int:
    """Print the table; 0 if every patch applied and the killed fraction is at least `required`."""
    table = Table("mutant", "fault", "verdict", "s", "first failure", title="mutants")
    for outcome in outcomes:
        style = None if outcome.killed else "bold red"
        seconds = f"{outcome.seconds:.0f}"
        table.add_row(
            outcome.mutant.path.stem, outcome.mutant.fault, outcome.verdict, seconds, outcome.detail, style=style
        )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    killed, errors = sum(o.killed for o in outcomes), sum(o.verdict == "ERROR" for o in outcomes)
    console.print(f"{killed} of {len(outcomes)} killed ({killed / len(outcomes):.0%}), required {required:.0%}")
    for outcome in outcomes:
        if not outcome.killed:
            console.print(f"{outcome.verdict}: {outcome.mutant.path.stem}: {outcome.mutant.fault} {outcome.detail}")
    return int(bool(errors) or killed < required * len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
