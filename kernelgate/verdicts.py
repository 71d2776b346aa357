"""Tests that other processes ran: here they assert their verdict, with the reports that pytest makes of any test."""

from typing import TYPE_CHECKING, Literal

import pytest

from kernelgate import report, stock
from kernelgate.session import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

_PHASES: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")


def run_protocol(gate: Gate, item: pytest.Item) -> None:
    """Report setup, call and teardown of a test of which only the verdict is left to assert."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    phases: dict[str, Callable[[], None]] = {
        "setup": lambda: _refuse(gate),
        "call": lambda: _assert_verdict(gate, item),
    }
    refused = False
    for when in _PHASES:
        if when == "call" and refused:
            continue
        call = pytest.CallInfo.from_call(
            phases.get(when, _nothing), when=when, reraise=(KeyboardInterrupt, pytest.exit.Exception)
        )
        made = hook.pytest_runtest_makereport(item=item, call=call)
        hook.pytest_runtest_logreport(report=made)
        refused = refused or not made.passed
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _refuse(gate: Gate) -> None:
    if refusal := gate.refusal():
        pytest.fail(refusal, pytrace=False)


def _assert_verdict(gate: Gate, item: pytest.Item) -> None:
    unobserved = gate.unobserved(item.nodeid)
    if unobserved is not None and unobserved.skipped:
        raise pytest.skip.Exception(unobserved.reason, _use_item_location=True)
    if unobserved is not None:
        pytest.fail(unobserved.reason, pytrace=False)
    row = gate.conclude(item, stock.make_fixture(item))
    if row is not None:
        report.assert_verdict(row, gate)


def _nothing() -> None:
    """There is nothing to take down."""
