"""The figures of a benchmark, as the columns of a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelgate import metrics, units
from kernelgate.metrics import LATENCY, Metric

if TYPE_CHECKING:
    from kernelgate.session import Row


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading and one cell for each row; an empty cell says that there is nothing to say.

    ``rank`` is how soon it may be left out where there is no room: the highest first, 0 never.
    """

    heading: str
    cells: tuple[str, ...]
    rank: int


def columns(rows: Sequence["Row | None"]) -> list[Column]:
    """The columns that some row has anything in, in the order of reading."""
    made = []
    for heading, cell, rank in _COLUMNS:
        cells = tuple("" if row is None else cell(row) for row in rows)
        if any(cells):
            made.append(Column(heading=heading, cells=_aligned(cells) if cell is slowdown else cells, rank=rank))
    return made


def slowdown(row: "Row") -> str:
    """The slowdown with its interval, or alone where nothing is known about its spread."""
    verdict = row.verdict
    if verdict is not None and verdict.interval is not None:
        return str(verdict.interval)
    if verdict is None or row.entry is None:
        return ""
    return units.percent(row.metrics[LATENCY].typical / row.entry.metrics[LATENCY].typical - 1, signed=True)


def detectable(row: "Row") -> str:
    """The smallest slowdown that would have been found."""
    value = row.verdict.detectable if row.verdict is not None else None
    if value is None or math.isnan(value):
        return ""
    return ">999 %" if value >= 9.995 else units.percent(value)


def _aligned(cells: Sequence[str]) -> tuple[str, ...]:
    """Slowdowns one under the other: the estimates to the right, the bounds to the left."""
    parts = [cell.partition(" [") for cell in cells]
    width = max(len(estimate) for estimate, _, _ in parts)
    texts = [f"{estimate:>{width}}{bracket}{bounds}" if estimate else "" for estimate, bracket, bounds in parts]
    width = max(map(len, texts))
    return tuple(f"{text:{width}}" if text else "" for text in texts)


def _value(name: str, text: Callable[[Metric], str]) -> Callable[["Row"], str]:
    return lambda row: text(row.metrics[name]) if name in row.metrics else ""


def _spread(row: "Row") -> str:
    latency = row.metrics[LATENCY]
    several = len(latency.values) > 1  # between the processes, of the rounds of the only one otherwise
    return f"± {units.percent(metrics.relative_spread(latency.values if several else row.samples))}"


def _was(row: "Row") -> str:
    return units.seconds(row.entry.metrics[LATENCY].typical) if row.entry is not None else ""


_COLUMNS: tuple[tuple[str, Callable[["Row"], str], int], ...] = (
    ("latency", _value(LATENCY, lambda found: units.seconds(found.typical)), 0),
    ("spread", _spread, 4),
    ("was", _was, 3),
    ("slowdown", slowdown, 0),
    ("finds", detectable, 1),
    ("peak", _value("peak_bytes", lambda found: units.short_size(found.worst)), 1),
    ("error", _value(metrics.ERROR, lambda found: f"{found.worst:.2g}"), 1),
    ("of copy", _value("fraction_of_copy", lambda found: units.percent(found.typical)), 5),
    ("of matmul", _value("fraction_of_matmul", lambda found: units.percent(found.typical)), 5),
    ("throughput", _value("throughput", lambda found: units.rate(found.typical, found.unit)), 6),
    ("bandwidth", _value("bandwidth", lambda found: units.rate(found.typical, "B/s")), 7),
    ("arithmetic", _value("arithmetic", lambda found: units.rate(found.typical, "FLOP/s")), 8),
    ("eager", _value(metrics.EAGER, lambda found: units.seconds(found.typical)), 9),
)
