"""The run as a comment on a pull request: what it came to, what asks for attention, and the rest folded away."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kernelgate.columns import columns
from kernelgate.difference import difference
from kernelgate.results import (
    QUIET,
    Result,
    ceilings,
    conclusion,
    counts,
    processes,
    reference,
    results,
    toolchain_changes,
)

if TYPE_CHECKING:
    from kernelgate.session import Gate

# What Markdown, or the site that shows it, would take for something else than text.
_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_|~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
)
_MAX_RANK = 3  # columns beyond these are for wide terminals


def markdown_report(gate: "Gate", exit_code: int | None = None) -> str:
    """The whole comment.

    Args:
        gate: The run.
        exit_code: How pytest ended, where that is known.
    """
    found = results(gate)
    loud = [result for result in found if result.status not in QUIET]
    quiet = [result for result in found if result.status in QUIET]
    parts = [f"**{escape(conclusion(gate, exit_code))}**"]
    if loud:
        parts.append(_table(loud))
    if quiet:
        summary = ", ".join(f"{count} {status}" for status, count in counts(quiet).items())
        parts += [f"<details><summary>{summary}</summary>", _table(quiet), "</details>"]
    parts.append("\n".join(f"- {fact}" for fact in _facts(gate)))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that reads as itself in Markdown, in a table as elsewhere."""
    return re.sub(r"\](?=[(\[])", r"\\]", " ".join(text.split()).translate(_SPECIAL))


def code(text: str) -> str:
    """Text as code in a table: fenced by more backticks than it has in a row."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    # A space on either side is taken off again.
    padding = " " if "`" in (text[0], text[-1]) or text[0] == text[-1] == " " else ""
    return f"{fence}{padding}{text}{padding}{fence}".replace("|", "\\|")


def _table(found: Sequence[Result]) -> str:
    figures = [column for column in columns([result.row for result in found]) if column.rank <= _MAX_RANK]
    reasons = [_reasons(result) for result in found]
    header = ["verdict", "benchmark", *(column.heading for column in figures)]
    rules = ["---", "---", *("---:" for _ in figures)]
    lines = [
        [result.status, code(result.nodeid), *(escape(column.cells[index].strip()) for column in figures)]
        for index, result in enumerate(found)
    ]
    if any(reasons):
        header.append("reason")
        rules.append("---")
        for line, reason in zip(lines, reasons, strict=True):
            line.append(reason)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rules, *lines))


def _reasons(result: Result) -> str:
    remarks = [*result.reasons, *result.notes]
    if result.status not in QUIET and result.row is not None and (found := difference(result.row)) and found.kernels:
        remarks += found.lines
    return "<br>".join(map(escape, remarks))


def _facts(gate: "Gate") -> list[str]:
    facts = [f"compared with {escape(named)}"] if (named := reference(gate)) else []
    device = gate.machine.device.get("name")
    facts.append(f"machine class {code(gate.machine.name)}" + (f" ({escape(str(device))})" if device else ""))
    facts.append(processes(gate))
    versions = {
        name: version for row in gate.rows.values() for name, version in row.details.get("toolchain", {}).items()
    }
    if versions:
        facts.append("toolchain " + escape(", ".join(f"{name} {version}" for name, version in versions.items())))
    if changes := toolchain_changes(gate):
        listed = ", ".join(f"{name} {then} → {now}" for name, then, now in changes)
        facts.append(f"**toolchain changed**: {escape(listed)}")
    facts += [f"ceilings of {escape(name)}: {escape(text)}" for name, text in ceilings(gate).items()]
    return facts
