"""The table of a run for a terminal: lines of text with their markup, for whatever width there is.

Benchmarks stand under their verdict and the test they are parameters of, so that a line has room for all figures in 80
columns. A name for which there is still no room gets a line of its own, and wider terminals get more columns.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.cells import cell_len

from kernelgate.columns import Column, columns
from kernelgate.difference import difference
from kernelgate.results import UNDECIDED, Result, Status

# Pieces of a line, each with its color and weight in the words of pytest's terminal writer.
Line = list[tuple[str, dict[str, bool]]]

_COLORS = {
    **dict.fromkeys((Status.REGRESSED, Status.MISSING, Status.FAILED, Status.NEW), "red"),
    **dict.fromkeys((*UNDECIDED, Status.NOT_RUN), "yellow"),
    **dict.fromkeys((Status.IMPROVED, Status.SAME), "green"),
}
_INDENT = "  "
_REMARK_INDENT = "      "
_GAPS = ("  ", " ")  # the narrow one where it makes every name fit

# A space that belongs to a number: before its unit, its bounds or its other half.
_INNER_SPACE = re.compile(
    r"(?<=\d) (?=(?:%|[mµn]?s\b|[KMG]i?B\b|B\b|[kMGTP]?(?:B|FLOP|tokens)/s|registers|warps|stages|launches))"
    r"|(?<=%) (?=\[)|(?<=,) (?=[+-]\d[^\[]*\])|(?<=\d) (?=→)|(?<=→) (?=\d)|(?<=±) "
)
_JOINED = "\N{NO-BREAK SPACE}"


def lay_out(found: Sequence[Result], width: int) -> list[Line]:
    """The table of some benchmarks, worst first.

    Args:
        found: The benchmarks, in the order of `results.results`.
        width: Columns of the terminal. No line is longer, unless a single name or number is.
    """
    ordered = _grouped(found)
    names = [split_name(result.nodeid)[1] for result in ordered]
    beside = [cell_len(name) for name, result in zip(names, ordered, strict=True) if result.row is not None]
    widest = max(beside, default=0)
    chosen, gap = _fitting(columns([result.row for result in ordered]), widest, width)
    widths = [len(gap) + _width(column) for column in chosen]
    name_width = max(min(widest, width - len(_INDENT) - sum(widths)), 0)
    said: set[str] = set()
    heading = _figures([column.heading for column in chosen], widths)
    lines: list[Line] = [[(_INDENT + " " * name_width + heading, {"bold": True})]] if heading else []
    numbered = enumerate(zip(ordered, names, strict=True))
    for (status, group), members in groupby(numbered, key=lambda each: (each[1][0].status, _group(each[1][0]))):
        color = {_COLORS[status]: True} if status in _COLORS else {}
        lines.append([(status, {"bold": True, **color}), (f"  {group}", {})])
        for index, (result, name) in members:
            figures = _figures([column.cells[index] for column in chosen], widths)
            if figures.strip() and cell_len(name) > name_width:
                lines.append([(_INDENT + name, {})])
                name = ""
            padding = " " * (name_width - cell_len(name))
            lines.append([((_INDENT + name + padding + figures).rstrip(), {})])
            for remark in _remarks(result):
                if result.status != Status.ENV or remark not in said:  # the state of the machine is said once
                    lines += [[(line, {})] for line in wrap(remark, width, _REMARK_INDENT)]
                    said.add(remark)
    return lines


def split_name(nodeid: str) -> tuple[str, str]:
    """A test's name in two: what it has in common with its neighbours, and what tells it from them."""
    path, _, name = nodeid.partition("::")
    function, bracket, parameters = name.partition("[")
    if bracket:
        return f"{path}::{function}", parameters.removesuffix("]")
    holder, _, function = nodeid.rpartition("::")
    return holder, function


def wrap(text: str, width: int, indent: str = "", separator: str = " ") -> Iterator[str]:
    """Break a text into lines between words, never inside a number with its unit and its bounds."""
    line = ""
    leading = text[: len(text) - len(text.lstrip())]
    for word in _INNER_SPACE.sub(_JOINED, text.strip()).split(separator):
        longer = f"{line}{separator}{word}" if line else indent + leading + word
        if line and cell_len(longer) > width:
            yield line.replace(_JOINED, " ")
            longer = indent + leading + word
        line = longer
    if line:
        yield line.replace(_JOINED, " ")


def _grouped(found: Sequence[Result]) -> list[Result]:
    """The benchmarks of one status in the order in which their groups first appear."""
    first: dict[tuple[Status, str], int] = {}
    for index, result in enumerate(found):
        first.setdefault((result.status, _group(result)), index)
    statuses = list(Status)
    return sorted(found, key=lambda each: (statuses.index(each.status), first[each.status, _group(each)]))


def _group(result: Result) -> str:
    return split_name(result.nodeid)[0]


def _fitting(found: Sequence[Column], widest_name: int, width: int) -> tuple[list[Column], str]:
    """The columns there is room for, and the gap between them.

    Luxuries have room only beside every name; for the others names move up a line.
    """

    def needed(chosen: Sequence[Column], gap: str) -> int:
        return len(_INDENT) + sum(len(gap) + _width(column) for column in chosen)

    wide, narrow = _GAPS
    chosen = sorted(found, key=lambda column: column.rank)
    while chosen and chosen[-1].rank > 1 and needed(chosen, wide) + widest_name > width:
        chosen.pop()
    gap = narrow if needed(chosen, narrow) + widest_name <= width < needed(chosen, wide) + widest_name else wide
    while chosen and chosen[-1].rank > 0 and needed(chosen, gap) > width:
        chosen.pop()
    return [column for column in found if column in chosen], gap


def _figures(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _width(column: Column) -> int:
    return max(map(len, (column.heading, *column.cells)))


def _remarks(result: Result) -> list[str]:
    remarks = [*result.reasons, *result.notes]
    if result.status == Status.REGRESSED and result.row is not None and (found := difference(result.row)):
        remarks += found.lines
    return remarks
