"""What a run came to, benchmark by benchmark and as a whole: the facts that every report says in its own way."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import pytest

from kernelgate import units
from kernelgate.ceilings import COPY, MATMUL
from kernelgate.metrics import LATENCY

if TYPE_CHECKING:
    from kernelgate.session import Gate, Row


class Status(StrEnum):
    """Where a benchmark stands: its verdict's outcome, or why it has none. Worst first, the order of every report."""

    REGRESSED = "REGRESSED"
    MISSING = "MISSING"
    FAILED = "FAILED"
    NEW = "NEW"
    ENV = "ENV"
    INSUFFICIENT = "INSUFFICIENT"
    AMBIGUOUS = "AMBIGUOUS"
    NOT_RUN = "NOT RUN"
    IMPROVED = "IMPROVED"
    SAME = "SAME"
    MEASURED = "MEASURED"


UNDECIDED = (Status.ENV, Status.INSUFFICIENT, Status.AMBIGUOUS)
# What a person has nothing to do about.
QUIET = (Status.SAME, Status.MEASURED)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark of the report.

    Attributes:
        nodeid: The test.
        status: Where it stands.
        row: What was measured; None where nothing was.
        reasons: Why it stands there, most important first.
        notes: Remarks that changed nothing.
    """

    nodeid: str
    status: Status
    row: "Row | None" = None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def results(gate: "Gate") -> list[Result]:
    """Every benchmark that was measured, or should have been; worst first, otherwise in the order of collection."""
    explanations = _explanations(gate.config)
    found = [_of_row(row) for row in gate.rows.values()]
    found += [
        Result(nodeid=nodeid, status=Status.MISSING, reasons=("in the baseline, and did not run",))
        for nodeid in gate.missing
    ]
    for nodeid in gate.benchmarks:
        if nodeid in gate.rows or nodeid in gate.missing:
            continue
        status = Status.FAILED if nodeid in gate.failed else Status.NOT_RUN
        found.append(Result(nodeid=nodeid, status=status, reasons=explanations.get(nodeid, ())))
    order = list(Status)
    return sorted(found, key=lambda result: order.index(result.status))


def counts(found: Iterable[Result]) -> dict[Status, int]:
    """How many benchmarks stand where, worst first."""
    counted = Counter(result.status for result in found)
    return {status: counted[status] for status in Status if counted[status]}


def conclusion(gate: "Gate", exit_code: int | None = None) -> str:
    """The run in one sentence.

    Args:
        gate: The run.
        exit_code: How pytest ended, where that is known.
    """
    found = results(gate)
    counted = counts(found)
    if exit_code is not None and exit_code in (
        pytest.ExitCode.INTERRUPTED,
        pytest.ExitCode.INTERNAL_ERROR,
        pytest.ExitCode.USAGE_ERROR,
    ):
        return f"The run did not finish (exit code {exit_code:d}); nothing can be concluded from it."
    red = [Status.REGRESSED, Status.MISSING, Status.FAILED] + ([] if gate.new_passes else [Status.NEW])
    for title, statuses in (("Red", red), ("Undecided", [*UNDECIDED])):
        if parts := [f"{counted[status]} {status}" for status in statuses if status in counted]:
            return f"{title}: {', '.join(parts)} of {_benchmarks(len(found))}."
    if exit_code == pytest.ExitCode.TESTS_FAILED:
        return "Red: a test that is no benchmark failed."
    measured = len(gate.rows)
    if not measured:
        return "No benchmark was measured."
    if not gate.comparing:
        return f"{_benchmarks(measured)} measured, and nothing compared."
    if Status.NEW in counted and gate.local:
        return f"No baseline for machine class {gate.machine.name}: {counted[Status.NEW]} passed uncompared."
    improved = f", {counted[Status.IMPROVED]} improved" if Status.IMPROVED in counted else ""
    new = f", {counted[Status.NEW]} new" if Status.NEW in counted else ""
    return f"Green: no regression in {_benchmarks(measured)}{improved}{new}."


def reference(gate: "Gate") -> str | None:
    """What was compared with; None where nothing was."""
    return (gate.reference or None) if gate.comparing else None


def processes(gate: "Gate") -> str:
    """How many processes measured, and how many the other side has."""
    rows = gate.rows.values()
    now = {len(row.metrics[LATENCY].values) for row in rows} or {gate.options.processes}
    then = {len(row.entry.metrics[LATENCY].values) for row in rows if row.entry is not None}
    text = f"{_range(now)} process{'' if now == {1} else 'es'}"
    return f"{text} against {_range(then)}" if then else text


def toolchain_changes(gate: "Gate") -> list[tuple[str, str, str]]:
    """Name, version then and version now of every tool that is not what it was for some benchmark."""
    changes = {
        (name, row.entry.toolchain.get(name, "none"), row.details["toolchain"].get(name, "none"))
        for row in gate.rows.values()
        if row.entry is not None
        for name in row.entry.toolchain.keys() | row.details["toolchain"].keys()
    }
    return sorted(change for change in changes if change[1] != change[2])


def ceilings(gate: "Gate") -> dict[str, str]:
    """The machine's ceilings, from the first benchmark of each device."""
    by_device: dict[str, str] = {}
    for row in gate.rows.values():
        if COPY in row.metrics:
            copy, matmul = (row.metrics[name].typical for name in (COPY, MATMUL))
            text = f"copy {units.rate(copy, 'B/s')}, matmul {units.rate(matmul, 'FLOP/s')}"
            by_device.setdefault(row.details["device"], text)
    return by_device


def _of_row(row: "Row") -> Result:
    verdict = row.verdict
    status = Status(verdict.outcome) if verdict is not None else Status.MEASURED
    reasons = verdict.reasons if verdict is not None else ()
    if row.failed_checks:
        reasons = (*(f"--benchmark-compare-fail: {check}" for check in row.failed_checks), *reasons)
        if status != Status.REGRESSED:
            status = Status.FAILED
    return Result(
        nodeid=row.nodeid,
        status=status,
        row=row,
        reasons=reasons,
        notes=verdict.notes if verdict is not None else (),
    )


def _explanations(config: pytest.Config) -> dict[str, tuple[str, ...]]:
    """The first line of what pytest has to say about each test that failed or was skipped."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    found: dict[str, tuple[str, ...]] = {}
    for outcome in ("failed", "error", "skipped"):
        for report in terminal.stats.get(outcome, ()) if terminal is not None else ():
            crash = getattr(report.longrepr, "reprcrash", None)
            if crash is not None:
                message = crash.message
            else:  # of a skip: path, line and reason
                message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
            if lines := message.strip().splitlines():
                found.setdefault(report.nodeid, (lines[0],))
    return found


def _benchmarks(count: int) -> str:
    return f"{count} benchmark{'' if count == 1 else 's'}"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
