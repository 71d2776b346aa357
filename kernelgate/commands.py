"""The ``kernelgate`` command, which looks after the baselines of the project in the current directory."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console
from rich.prompt import Confirm

from kernelgate import listing, operating, selftest
from kernelgate.baseline import BaselineError, files, find, load, remove
from kernelgate.machine import detect
from kernelgate.project import Project, find_project
from kernelgate.provenance import is_committed
from kernelgate.record import lock_file

FAILURE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for an answer of no, 2 for an error, which is one line."""
    chosen = _parser().parse_args(arguments)
    try:
        project = find_project(Path.cwd(), chosen.baselines)
        status: int = chosen.run(chosen, project, _console())
    except (BaselineError, OSError, pytest.UsageError) as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 130
    return status


def _list(chosen: argparse.Namespace, project: Project, console: Console) -> int:
    classes = _classes(project)
    if chosen.machine:
        classes = {chosen.machine: _files(project, chosen.machine)}
    errors = []
    for name, paths in classes.items():
        table, unreadable = listing.class_table(name, paths)
        console.print(table)
        errors += unreadable
    if not classes:
        console.print(f"no baselines in {project.baselines}")
    for error in errors:
        _complain(error)
    return FAILURE if errors else 0


def _show(chosen: argparse.Namespace, project: Project, console: Console) -> int:
    selector = chosen.selector
    if selector.endswith(".json") and Path(selector).is_file():
        path = Path(selector)
    else:
        paths = _files(project, _machine(chosen, project))
        path = find(paths[-1].parent, selector) if selector else paths[-1]
    baseline = load(path)
    console.print(listing.provenance(baseline), soft_wrap=True)
    console.print(listing.entry_table(baseline))
    return 0


def _update(chosen: argparse.Namespace, project: Project, _: Console) -> NoReturn:
    options = [f"--gate-record={chosen.reason}"]
    if chosen.processes is not None:
        options.append(f"--gate-processes={chosen.processes}")
    if chosen.baselines is not None:
        options += ["-o", f"gate_baselines={project.baselines}"]
    # Pytest takes this process's place, and with it Ctrl-C and the exit status.
    command = [sys.executable, "-m", "pytest", "-p", "kernelgate.plugin", *options, *chosen.arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 -- no shell is wanted


def _curve(chosen: argparse.Namespace, project: Project, console: Console) -> int:
    machine = _machine(chosen, project)
    paths = _files(project, machine)
    folder = paths[0].parent / selftest.FOLDER
    try:
        found = selftest.records(folder)
    except ValueError as error:
        raise BaselineError(str(error)) from error
    found += [record for path in paths if (record := selftest.record_of(load(path))) is not None]
    curve = operating.operating_curve(
        found, margin=chosen.margin, mde=chosen.mde, processes=chosen.processes, gates=chosen.gates
    )
    console.print(f"machine class {machine}: pairs of processes, margin {chosen.margin:g}, at most {chosen.processes}")
    for line in operating.table(curve):
        console.print(line, soft_wrap=True)
    return 0


def _prune(chosen: argparse.Namespace, project: Project, console: Console) -> int:
    paths = _files(project, _machine(chosen, project))
    old = paths[: -chosen.keep]
    if not old:
        console.print(f"nothing to remove: {paths[0].parent} has {len(paths)} of {chosen.keep} files to keep")
        return 0
    lost = [path.name for path in old if not is_committed(path)]
    if lost:
        raise BaselineError(f"{old[0].parent}: expected files that git can bring back, found {', '.join(lost)}")
    for path in old:
        console.print(f"remove {path}", soft_wrap=True)
    if not chosen.yes:
        try:
            agreed = Confirm.ask(f"Remove {len(old)} of {len(paths)} files?", console=console, default=False)
        except EOFError as error:
            raise BaselineError("--yes: expected where nobody can be asked") from error
        if not agreed:
            return 1
    remove(old, lock=lock_file(project.root))
    console.print(f"removed {len(old)} files; they stay in git until that is committed, and in its history after")
    return 0


def _classes(project: Project) -> dict[str, list[Path]]:
    """The files of each machine class that has any."""
    if not project.baselines.is_dir():
        raise BaselineError(f"{project.baselines}: expected the folder of the baselines, found none")
    found = {folder.name: files(folder) for folder in sorted(project.baselines.iterdir()) if folder.is_dir()}
    return {name: paths for name, paths in found.items() if paths}


def _files(project: Project, machine: str) -> list[Path]:
    classes = _classes(project)
    if machine not in classes:
        existing = ", ".join(classes) or "none"
        raise BaselineError(f"no baseline for machine class {machine} in {project.baselines}; there are: {existing}")
    return classes[machine]


def _machine(chosen: argparse.Namespace, project: Project) -> str:
    """The machine class that is named, otherwise the only one that there is, otherwise that of this machine."""
    if chosen.machine or project.machine:
        return str(chosen.machine or project.machine)
    classes = _classes(project)
    return next(iter(classes)) if len(classes) == 1 else detect().name


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kernelgate", description="Look after the baselines that pytest compares with.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    baseline = commands.add_parser("baseline", help="list, show, update or prune baselines")
    actions = baseline.add_subparsers(metavar="ACTION", required=True)

    shared = _Parser(add_help=False)
    shared.add_argument("--baselines", type=Path, metavar="FOLDER", help="Instead of the ini key gate_baselines")
    of_class = _Parser(add_help=False)
    of_class.add_argument("--machine", default="", metavar="CLASS", help="A class of machines, by its folder's name")

    action = actions.add_parser("list", parents=[shared, of_class], help="the files of every class of machines")
    action.set_defaults(run=_list)

    action = actions.add_parser("show", parents=[shared, of_class], help="the benchmarks of a baseline")
    action.add_argument("selector", nargs="?", default="", help="A number or a file. Default: the newest")
    action.set_defaults(run=_show)

    action = actions.add_parser("update", parents=[shared], help="measure, and add a baseline for this machine")
    action.add_argument("--reason", required=True, type=_reason, help="Why there is a new baseline")
    action.add_argument("--processes", type=_positive, metavar="N", help="As pytest's --gate-processes")
    action.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="For pytest, such as -m perf")
    action.set_defaults(run=_update)

    action = actions.add_parser("prune", parents=[shared, of_class], help="remove all but the newest baselines")
    action.add_argument("--keep", required=True, type=_positive, metavar="N", help="How many stay")
    action.add_argument("--yes", action="store_true", help="Remove without asking")
    action.set_defaults(run=_prune)

    action = commands.add_parser(
        "curve",
        parents=[shared, of_class],
        help="what the gate would have decided on recorded processes: false alarms, and planted slowdowns found",
    )
    action.add_argument("--margin", type=_fraction, default=0.01, help="Slowdown that counts as none. Default: 0.01")
    action.add_argument("--mde", type=_fraction, default=0.02, help="Slowdown beyond it to be found. Default: 0.02")
    action.add_argument("--processes", type=_positive, default=20, metavar="N", help="Pairs, at most. Default: 20")
    action.add_argument("--gates", type=_positive, default=operating.GATES, metavar="N", help="How many are drawn")
    action.set_defaults(run=_curve)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(FAILURE, f"{self.prog}: error: {message}\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 10:
        raise argparse.ArgumentTypeError(f"expected a positive fraction such as 0.01, found {text!r}")
    return value


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected the reason for the new baseline, found nothing")
    return text


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)  # node ids have brackets


def _complain(error: Exception) -> int:
    print(f"kernelgate: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return FAILURE
