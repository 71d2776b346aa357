"""What the user sees: failures and skips of tests, missing benchmarks, the table and its summary."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from kernelgate import metrics, units
from kernelgate.ceilings import COPY, MATMUL
from kernelgate.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from kernelgate.session import Gate, Row

_COLORS = {
    Outcome.REGRESSED: "red",
    Outcome.NEW: "red",
    Outcome.MISSING: "red",
    Outcome.ENV: "yellow",
    Outcome.INSUFFICIENT: "yellow",
    Outcome.AMBIGUOUS: "yellow",
    Outcome.IMPROVED: "green",
    Outcome.SAME: "green",
}


def assert_verdict(row: "Row", gate: "Gate") -> None:
    """End the test as its verdict says: fail on a regression, skip where nothing could be decided."""
    if row.failed_checks:
        pytest.fail("--benchmark-compare-fail: " + "; ".join(row.failed_checks), pytrace=False)
    verdict = row.verdict
    if verdict is None or verdict.outcome in (Outcome.SAME, Outcome.IMPROVED):
        return
    reason, *more = (*verdict.reasons, *verdict.notes)
    message = "\n  ".join((f"{verdict.outcome}: {reason}", *more))
    if verdict.outcome == Outcome.REGRESSED:
        pytest.fail(f"{message}\n  {_diagnosis(row)}", pytrace=False)
    if verdict.outcome == Outcome.NEW:
        if not gate.local:
            pytest.fail(f"{message}; add it with --gate-record", pytrace=False)
        return
    raise pytest.skip.Exception(message, _use_item_location=True)  # the test's line, not this one


def log_missing(config: pytest.Config, nodeid: str) -> None:
    """Report a benchmark that did not run as a failed test of its own, so that every reporter sees it."""
    location = (nodeid.partition("::")[0], None, nodeid)
    config.hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
    for when in ("call", "teardown"):
        config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(
                nodeid=nodeid,
                location=location,
                keywords={},
                outcome="failed" if when == "call" else "passed",
                longrepr="MISSING: the baseline has this benchmark and it did not run" if when == "call" else None,
                when=when,
            )
        )
    config.hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict for the JSON report."""
    interval = verdict.interval
    return {
        "outcome": verdict.outcome,
        "reasons": list(verdict.reasons),
        "notes": list(verdict.notes),
        "slowdown": [interval.estimate, interval.lower, interval.upper] if interval else None,
    }


def write_report(terminal: pytest.TerminalReporter, gate: "Gate") -> None:
    """Write the table, one block for each benchmark, and the summary."""
    if not (gate.rows or gate.missing or gate.comparing or gate.recording):
        return
    terminal.section("kernelgate", "-")
    if gate.rows or gate.missing:
        _write_table(terminal, gate)
        terminal.write_line("")
    _write_summary(terminal, gate)


def _write_table(terminal: pytest.TerminalReporter, gate: "Gate") -> None:
    rows = list(gate.rows.values())
    names = {row.nodeid: _short(row.nodeid) for row in rows}
    room = terminal._tw.fullwidth - 56  # what the other columns leave
    width = min(max((len(name) for name in names.values()), default=0), max(room, 16))
    heading = f"{'benchmark':{width}}  {'latency':>19}"
    if gate.comparing and gate.baseline is not None:
        heading += f"  {'slowdown':>20}  verdict"
    terminal.write_line(heading.rstrip(), bold=True)
    shown: set[str] = set()
    for row in rows:
        name = names[row.nodeid]
        if len(name) > width:
            terminal.write_line(name)
            name = ""
        terminal.write(f"{name:{width}}  {_latency(row):>19}")
        if row.verdict is not None and gate.baseline is not None:
            terminal.write(f"  {row.verdict.interval or ''!s:>20}  ")
            terminal.write(row.verdict.outcome, bold=True, **{_COLORS[row.verdict.outcome]: True})
        terminal.write_line("")
        _write_wrapped(terminal, _facts(row))
        for remark in _remarks(row):
            if remark not in shown:
                terminal.write_line(f"    {remark}")
        if row.verdict is not None and row.verdict.outcome == Outcome.ENV:
            shown.update(_remarks(row))  # the state of the machine is said once
    for nodeid in gate.missing:
        terminal.write(f"{_short(nodeid)}  ")
        terminal.write_line(Outcome.MISSING, red=True, bold=True)


def _write_summary(terminal: pytest.TerminalReporter, gate: "Gate") -> None:
    counts = Counter(row.verdict.outcome for row in gate.rows.values() if row.verdict is not None)
    counts[Outcome.MISSING] += len(gate.missing)
    verdicts = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome])
    facts = [verdicts or (f"{len(gate.rows)} measured" if gate.rows else "no benchmark was measured")]
    if gate.comparing or gate.recording:
        facts.append(f"machine class {gate.machine.name}")
    if gate.comparing and gate.baseline is not None:
        kind = "local baseline" if gate.local else "baseline"
        facts.append(f"{kind} {gate.baseline.path.name}")
    count = gate.options.processes
    facts.append(
        f"{count} process{'es' if count > 1 else ''}; ± is the spread {'between them' if count > 1 else 'of rounds'}"
    )
    _write_wrapped(terminal, facts, indent="")
    _write_wrapped(terminal, _ceilings(gate), indent="")
    _write_wrapped(terminal, _toolchain_changes(gate), indent="")
    if gate.recorded is not None and gate.recording:
        terminal.write_line(f"recorded {gate.recorded}", bold=True)
        if skipped := sorted(gate.benchmarks.keys() - gate.rows.keys()):
            terminal.write_line(f"not in it, because they were skipped: {', '.join(skipped)}", yellow=True)
    elif gate.recorded is not None:
        terminal.write_line(
            f"NO BASELINE for machine class {gate.machine.name}: {len(gate.rows)} benchmarks passed uncompared. "
            f"Later runs compare with {gate.recorded}, which is outside version control.",
            yellow=True,
            bold=True,
        )
    elif gate.recording:
        terminal.write_line("NOT RECORDED: a test failed or no benchmark ran", red=True, bold=True)


def _short(nodeid: str) -> str:
    """A test's name without its file; the parameters tell problems apart, so they stay."""
    return nodeid.partition("::")[2]


def _remarks(row: "Row") -> tuple[str, ...]:
    return (*row.verdict.reasons, *row.verdict.notes) if row.verdict is not None else ()


def _latency(row: "Row") -> str:
    latency = row.metrics[metrics.LATENCY]
    values = latency.values if len(latency.values) > 1 else row.samples
    return f"{units.seconds(latency.typical)} ± {units.percent(metrics.relative_spread(values))}"


def _facts(row: "Row") -> list[str]:
    """The other metrics worth a glance."""
    found = row.metrics
    facts = []
    if "throughput" in found:
        facts.append(units.rate(found["throughput"].typical, "tokens/s"))
    for name, unit, fraction, ceiling in (
        ("bandwidth", "B/s", "fraction_of_copy", "a copy"),
        ("arithmetic", "FLOP/s", "fraction_of_matmul", "a matmul"),
    ):
        if name in found:
            share = f" ({units.percent(found[fraction].typical)} of {ceiling})" if fraction in found else ""
            facts.append(units.rate(found[name].typical, unit) + share)
    if "peak_bytes" in found:
        facts.append(f"peak {units.size(found['peak_bytes'].worst)}")
    if metrics.ERROR in found:
        facts.append(f"error {found[metrics.ERROR].worst:.2g}")
    if metrics.EAGER in found:
        facts.append(f"eager {units.seconds(found[metrics.EAGER].typical)}")
    return facts


def _ceilings(gate: "Gate") -> list[str]:
    """The machine's ceilings, from the first row of each device."""
    by_device: dict[str, str] = {}
    for row in gate.rows.values():
        if COPY in row.metrics:
            copy, matmul = row.metrics[COPY], row.metrics[MATMUL]
            by_device.setdefault(
                row.details["device"],
                f"copy {units.rate(copy.typical, 'B/s')}, matmul {units.rate(matmul.typical, 'FLOP/s')}",
            )
    return [f"ceilings of {device}: {text}" for device, text in by_device.items()]


def _toolchain_changes(gate: "Gate") -> list[str]:
    changes = {
        f"{name} {row.entry.toolchain.get(name, 'none')} → {row.details['toolchain'].get(name, 'none')}"
        for row in gate.rows.values()
        if row.entry is not None
        for name in row.entry.toolchain.keys() | row.details["toolchain"].keys()
        if row.entry.toolchain.get(name) != row.details["toolchain"].get(name)
    }
    return ["toolchain changed: " + ", ".join(sorted(changes))] if changes else []


def _diagnosis(row: "Row") -> str:
    """Where to look first. The binaries never decide anything: a cuBLAS change leaves all of Triton's alone."""
    before = {kernel["binary"] for kernel in row.entry.details.get("kernels", ())} if row.entry is not None else set()
    now = {kernel["binary"] for kernel in row.details.get("kernels", ())}
    if not before and not now:
        return "no Triton kernel involved"
    if before == now:
        return "same Triton binaries: look at the host, a library or the machine"
    changed = sorted({kernel["name"] for kernel in row.details.get("kernels", ()) if kernel["binary"] not in before})
    return f"Triton binaries changed: {', '.join(changed) or 'some are gone'}"


def _write_wrapped(terminal: pytest.TerminalReporter, facts: list[str], indent: str = "    ") -> None:
    """Write facts separated by dots, breaking lines between them."""
    line = ""
    for fact in facts:
        longer = f"{line} · {fact}" if line else indent + fact
        if line and len(longer) > terminal._tw.fullwidth:
            terminal.write_line(line)
            longer = indent + fact
        line = longer
    if line:
        terminal.write_line(line)
