"""What JUnit XML says about a benchmark besides passed and failed: properties of its test case, to chart.

Values are plain numbers: seconds, and fractions of the baseline for everything about the slowdown. What is not known
is left out.
"""

import math
from typing import TYPE_CHECKING

import pytest

from kernelgate.metrics import LATENCY
from kernelgate.verdict import Outcome

if TYPE_CHECKING:
    from kernelgate.session import Row


def add_properties(item: pytest.Item, row: "Row") -> None:
    """Attach the figures of a benchmark to its test, as the fixture ``record_property`` would."""
    item.user_properties.extend(properties(row))


def properties(row: "Row") -> list[tuple[str, object]]:
    """Verdict, slowdown with its bounds, margin, minimum detectable effect, and latency now and then."""
    figures: dict[str, float | None] = {}
    if row.verdict is not None:
        interval = row.verdict.interval
        if interval is not None:
            figures["gate_slowdown"] = interval.estimate
            figures["gate_slowdown_lower"] = interval.lower
            figures["gate_slowdown_upper"] = interval.upper
        figures["gate_margin"] = row.verdict.margin
        figures["gate_detectable"] = row.verdict.detectable
    figures["gate_latency_s"] = row.metrics[LATENCY].typical
    if row.entry is not None:
        figures["gate_latency_then_s"] = row.entry.metrics[LATENCY].typical
    known = [(name, f"{value:.6g}") for name, value in figures.items() if value is not None and math.isfinite(value)]
    return [*([("gate_verdict", str(row.verdict.outcome))] if row.verdict is not None else []), *known]


def missing_properties() -> list[tuple[str, object]]:
    """The properties of a benchmark that did not run."""
    return [("gate_verdict", str(Outcome.MISSING))]
