"""What a self-test found, for the person who asked for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kernelgate import operating, selftest
from kernelgate.options import tolerance

if TYPE_CHECKING:
    from kernelgate.session import Gate


def write(terminal: pytest.TerminalReporter, gate: "Gate", paths: Sequence[Path]) -> None:
    """Write the operating curve of a self-test's records, and where they are kept."""
    device = str(gate.machine.device["type"])
    margin, mde = (tolerance(gate.config, name, device, paired=True) for name in ("gate_margin", "gate_mde"))
    curve = operating.operating_curve([selftest.read_record(path) for path in paths], margin=margin, mde=mde)
    terminal.section("kernelgate self-test")
    for line in operating.table(curve):
        terminal.write_line(line)
    folder = gate.options.baselines / gate.machine.name / selftest.FOLDER
    for path in paths:
        terminal.write_line(f"recorded in {path}; in {folder} it counts for `kernelgate curve`")
