"""Baselines as tables for people."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kernelgate import units
from kernelgate.baseline import Baseline, BaselineError, Entry, load
from kernelgate.metrics import ERROR, LATENCY, relative_spread

_PEAK = "peak_bytes"
_STYLE: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False, "show_edge": False}


def class_table(name: str, paths: Sequence[Path]) -> tuple[Table, list[BaselineError]]:
    """The files of a machine class, and what is wrong with those that cannot be read."""
    table = Table(title=name, title_justify="left", title_style="bold", **_STYLE)
    table.add_column("number", justify="right")
    table.add_column("commit", no_wrap=True)
    table.add_column("date", no_wrap=True)
    table.add_column("benchmarks", justify="right")
    table.add_column("processes", justify="right")
    table.add_column("reason", overflow="fold")
    errors = []
    for path in paths:
        number, _, commit = path.stem.partition("_")
        try:
            baseline = load(path)
        except BaselineError as error:
            errors.append(error)
            table.add_row(number, commit, "", "", "", "cannot be read", style="red")
            continue
        entries = baseline.entries.values()
        date = baseline.recorded.partition(" ")[0]
        table.add_row(number, baseline.commit[:10], date, str(len(entries)), _processes(entries), baseline.reason)
    return table, errors


def provenance(baseline: Baseline) -> str:
    """Where a baseline comes from, in a sentence."""
    block = baseline.document["kernelgate"]
    checked = "content matches its checksum" if "checksum" in block else "without a checksum"
    return (
        f"{baseline.path.name}: commit {baseline.commit}, recorded {baseline.recorded} UTC on machine class "
        f"{baseline.machine_class}, schema {block['schema']}, {checked}. "
        f"Reason: {baseline.reason or 'none; a run saved by pytest-benchmark'}"
    )


def entry_table(baseline: Baseline) -> Table:
    """The benchmarks of a baseline, below the names of their files."""
    table = Table(caption_justify="left", caption_style="", **_STYLE)
    table.add_column("benchmark", overflow="fold")
    for heading in ("latency", "spread", "processes", "peak", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    toolchains = sorted({_toolchain(entry) for entry in baseline.entries.values()})
    keys = {each: str(number) for number, each in enumerate(toolchains, 1)} if len(toolchains) > 1 else {}
    if keys:
        table.add_column("toolchain")
    last = ""
    for nodeid, entry in baseline.entries.items():
        file, _, name = nodeid.partition("::")
        if file != last:
            table.add_row(file, style="bold")
            last = file
        key = [keys[_toolchain(entry)]] if keys else []
        table.add_row(f"  {name}", *_cells(entry), *key)
    numbered = (f"toolchain {keys[each]}: {each}" if keys else f"toolchain: {each}" for each in toolchains)
    table.caption = "\n".join(numbered)
    return table


def _cells(entry: Entry) -> list[str]:
    latency = entry.metrics[LATENCY]
    processes = len(latency.values)
    return [
        units.seconds(latency.typical),
        units.percent(relative_spread(latency.values)) if processes > 1 else "",
        str(processes),
        units.size(entry.metrics[_PEAK].worst) if _PEAK in entry.metrics else "",
        f"{entry.metrics[ERROR].worst:.2g}" if ERROR in entry.metrics else "",
    ]


def _processes(entries: Iterable[Entry]) -> str:
    counts = {len(entry.metrics[LATENCY].values) for entry in entries}
    if len(counts) < 2:
        return "".join(map(str, counts))
    return f"{min(counts)} to {max(counts)}"


def _toolchain(entry: Entry) -> str:
    return ", ".join(f"{name} {version}" for name, version in entry.toolchain.items())
