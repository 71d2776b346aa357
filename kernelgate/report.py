"""What the user sees: failures and skips of tests, missing benchmarks, the table and its summary, the files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kernelgate import json_report, junit, markdown, results, table
from kernelgate.columns import detectable
from kernelgate.difference import difference
from kernelgate.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from kernelgate.session import Gate, Row

_UNWRITTEN = pytest.StashKey[list[str]]()


def assert_verdict(row: "Row", gate: "Gate") -> None:
    """End the test as its verdict says: fail on a regression, skip where nothing could be decided."""
    junit.add_properties(gate.benchmarks[row.nodeid], row)
    if row.failed_checks:
        pytest.fail("--benchmark-compare-fail: " + "; ".join(row.failed_checks), pytrace=False)
    verdict = row.verdict
    if verdict is None or verdict.outcome in (Outcome.SAME, Outcome.IMPROVED):
        return
    reason, *more = (*verdict.reasons, *verdict.notes)
    message = "\n  ".join((f"{verdict.outcome}: {reason}", *more))
    if verdict.outcome == Outcome.REGRESSED:
        found = difference(row)
        pytest.fail("\n  ".join((message, *(found.lines if found is not None else ()))), pytrace=False)
    if verdict.outcome == Outcome.NEW:
        if not gate.new_passes:
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
                user_properties=junit.missing_properties(),
            )
        )
    config.hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict for pytest-benchmark's JSON report."""
    interval = verdict.interval
    return {
        "outcome": verdict.outcome,
        "reasons": list(verdict.reasons),
        "notes": list(verdict.notes),
        "slowdown": [interval.estimate, interval.lower, interval.upper] if interval else None,
        "margin": verdict.margin,
        "detectable": verdict.detectable,
    }


def write_files(gate: "Gate", session: pytest.Session) -> None:
    """Write the reports that --gate-markdown and --gate-json ask for.

    One that cannot be written is named in the summary, and turns a green run red: nobody would miss it otherwise.

    Args:
        gate: The run.
        session: At its end, when its exit status is that of the run.
    """
    config = gate.config
    if gate.is_child or config.option.collectonly or hasattr(config, "workerinput"):
        return
    unwritten = config.stash[_UNWRITTEN] = []
    for option, render in (("gate_markdown", markdown.markdown_report), ("gate_json", _json_text)):
        name = getattr(config.option, option)
        if name is None:
            continue
        path = Path(config.invocation_params.dir, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(gate, int(session.exitstatus)), encoding="utf-8")
        except OSError as error:
            unwritten.append(f"--{option.replace('_', '-')}: not written: {error}")
    if unwritten and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def write_report(terminal: pytest.TerminalReporter, gate: "Gate") -> None:
    """Write the table of the benchmarks and the summary."""
    unwritten = gate.config.stash.get(_UNWRITTEN, [])
    if not (gate.rows or gate.missing or gate.comparing or gate.recording or unwritten):
        return
    terminal.ensure_newline()
    terminal.section("kernelgate", "-")
    found = results.results(gate)
    if gate.rows or gate.missing:
        for line in table.lay_out(found, _width(terminal)):
            for text, markup in line:
                terminal.write(text, **markup)
            terminal.line("")
        terminal.line("")
    _write_summary(terminal, gate, found)
    for message in unwritten:
        terminal.line(message, red=True, bold=True)


def _write_summary(terminal: pytest.TerminalReporter, gate: "Gate", found: list[results.Result]) -> None:
    counted = {status: count for status, count in results.counts(found).items() if status != results.Status.MEASURED}
    facts = [f"{count} {status}" for status, count in counted.items()] if gate.rows or gate.missing else []
    facts = (
        [", ".join(facts)] if facts else [f"{len(gate.rows)} measured" if gate.rows else "no benchmark was measured"]
    )
    if gate.comparing or gate.recording:
        facts.append(f"machine class {gate.machine.name}")
    if reference := results.reference(gate):
        facts.append(reference)
    facts.append(results.processes(gate))
    if any(map(detectable, gate.rows.values())):
        facts.append("finds: the smallest slowdown that they would find")
    _write_facts(terminal, facts)
    _write_facts(terminal, [f"ceilings of {device}: {text}" for device, text in results.ceilings(gate).items()])
    if changes := results.toolchain_changes(gate):
        text = ", ".join(f"{name} {then} → {now}" for name, then, now in changes)
        _write_facts(terminal, [f"toolchain changed: {text}"])
    _write_recorded(terminal, gate)


def _write_recorded(terminal: pytest.TerminalReporter, gate: "Gate") -> None:
    if gate.recorded is not None and gate.recording:
        terminal.line(f"recorded {gate.recorded}", bold=True)
        if skipped := sorted(gate.benchmarks.keys() - gate.rows.keys()):
            terminal.line(f"not in it, because they were skipped: {', '.join(skipped)}", yellow=True)
    elif gate.recorded is not None:
        terminal.line(
            f"NO BASELINE for machine class {gate.machine.name}: {len(gate.rows)} benchmarks passed uncompared. "
            f"Later runs compare with {gate.recorded}, which is outside version control.",
            yellow=True,
            bold=True,
        )
    elif gate.recording:
        terminal.line(
            "NOT RECORDED: a test failed, the machine was not fit to be measured (ENV), or no benchmark ran",
            red=True,
            bold=True,
        )


def _write_facts(terminal: pytest.TerminalReporter, facts: list[str]) -> None:
    """Write facts separated by dots, breaking lines between them."""
    for line in table.wrap(" · ".join(facts), _width(terminal), separator=" · "):
        terminal.line(line)


def _width(terminal: pytest.TerminalReporter) -> int:
    return terminal._tw.fullwidth


def _json_text(gate: "Gate", exit_code: int) -> str:
    return json.dumps(json_report.json_report(gate, exit_code), indent=1, allow_nan=False) + "\n"
