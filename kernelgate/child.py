"""A process that only observes: what it tells the one that started it."""

import pytest

from kernelgate import against, template
from kernelgate.fixture import GateFixture
from kernelgate.processes import append, read_request
from kernelgate.session import Gate


def begin(gate: Gate, session: pytest.Session) -> None:
    """Run what was asked for and nothing else. A template returns from here in each of its forks, and at its end.

    Raises:
        pytest.UsageError: Another tree is measured, and modules come from the current one.
    """
    if foreign := against.forbidden_modules():
        raise pytest.UsageError(
            f"--gate-against: {', '.join(foreign[:5])} would be imported from the current tree, not from the commit's; "
            "let pytest's ini key pythonpath name the folders to import from"
        )
    results = gate.options.child
    if gate.options.template is not None:
        results = template.serve(gate.options.template, session)
    gate.results = results
    wanted: set[str] = set()
    if results is not None:
        wanted = set(read_request(results))
        append(results, event="collected", nodeids=list(gate.benchmarks))
    session.items[:] = [item for item in session.items if item.nodeid in wanted]


def note_start(gate: Gate, item: pytest.Item) -> None:
    """Tell which benchmark is running, should this process not live to tell more."""
    _tell(gate, event="start", nodeid=item.nodeid)


def note_report(gate: Gate, item: pytest.Item, report: pytest.TestReport, fixture: object) -> None:
    """Hand over what a benchmark showed, once nothing of it can fail any more; or that it failed, or was skipped."""
    if report.failed:
        _tell(gate, event="failed", nodeid=item.nodeid, reason=_reason(report))
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        _tell(gate, event="skipped", nodeid=item.nodeid, reason=reason.removeprefix("Skipped: "))
    elif report.when == "teardown" and isinstance(fixture, GateFixture) and item.nodeid not in gate.failed:
        if fixture.observation is None:
            reason = "nothing was measured: does it call benchmark(...)?"
            _tell(gate, event="failed", nodeid=item.nodeid, reason=reason)
            return
        _tell(gate, event="observation", nodeid=item.nodeid, observation=fixture.observation.to_json())


def _tell(gate: Gate, **event: object) -> None:
    if gate.results is None:
        return
    try:
        append(gate.results, **event)
    except OSError as error:
        pytest.exit(f"{gate.results}: results cannot be written: {error}")


def _reason(report: pytest.TestReport) -> str:
    """What pytest says of a failure, its message first: reports of one line show no more."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return f"{crash.message}\n\n{report.longreprtext}" if crash is not None else report.longreprtext
