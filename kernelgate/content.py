"""What a baseline's document has to hold: every field that is read later, by the gate or by pytest-benchmark's tools.

A file may have been edited, merged or written by something else. What is wrong with it is found when it is read, before
anything is measured, and is said with the name of the field.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kernelgate.metrics import LATENCY, Metric, read_metrics

# What pytest-benchmark's table, histogram and checks read of an entry.
_STATISTICS = (
    *("min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "ld15iqr", "hd15iqr"),
    *("ops", "total", "rounds", "iterations"),
)


class ContentError(ValueError):
    """A field that is not what it should be; the message starts with its name."""


def check_content(document: Mapping[str, Any]) -> None:
    """Check the fields of a document that has a ``kernelgate`` block.

    Raises:
        ContentError: A field is missing, of the wrong type, or contradicts another one.
    """
    block = document["kernelgate"]
    _text(block, "kernelgate", "machine_class")
    _versions(block, "kernelgate")
    _text(document, "", "datetime")
    _text(_value(document, "", "commit_info", dict), "commit_info", "id")
    recorded = "reason" in block  # and not saved by an option of pytest-benchmark's, which stores what it is told to
    if recorded:
        _text(block, "kernelgate", "reason")
    seen: dict[str, int] = {}
    for index, entry in enumerate(_value(document, "", "benchmarks", list)):
        where = f"benchmarks[{index}]"
        if not isinstance(entry, dict):
            raise ContentError(f"{where}: expected an object, found {_found(entry)}")
        _check_entry(entry, where, recorded=recorded)
        first = seen.setdefault(entry["fullname"], index)
        if first != index:
            raise ContentError(f"{where}.fullname: expected another than that of benchmarks[{first}], found it twice")


def _check_entry(entry: Mapping[str, Any], where: str, *, recorded: bool) -> None:
    for name in ("fullname", "name"):
        _text(entry, where, name)
    stats, stats_field = _value(entry, where, "stats", dict), f"{where}.stats"
    for name in _STATISTICS:
        _numbers([_value(stats, stats_field, name, int | float)], f"{stats_field}.{name}", positive=False)
    extra, extra_field = _value(entry, where, "extra_info", dict), f"{where}.extra_info"
    _versions(extra, extra_field)
    for index, kernel in enumerate(_value(extra, extra_field, "kernels", list, default=[])):
        kernel_field = f"{extra_field}.kernels[{index}]"
        if not isinstance(kernel, dict):
            raise ContentError(f"{kernel_field}: expected an object, found {_found(kernel)}")
        for name in ("name", "binary"):
            _text(kernel, kernel_field, name)
    metrics = _check_metrics(_value(extra, extra_field, "metrics", dict), f"{extra_field}.metrics")
    if recorded or "data" in stats:
        _numbers(_value(stats, stats_field, "data", list), f"{stats_field}.data", positive=False)
    processes = len(metrics[LATENCY].values)
    if processes > 1 or "rounds" in extra:  # all samples of a single process are its own
        _check_rounds(extra, extra_field, processes=processes, samples=stats.get("data"))


def _check_rounds(extra: Mapping[str, Any], where: str, *, processes: int, samples: Sequence[float] | None) -> None:
    rounds = _value(extra, where, "rounds", list)
    for count in rounds:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ContentError(f"{where}.rounds: expected positive integers, found {_found(count)}")
    if len(rounds) != processes:
        raise ContentError(f"{where}.rounds: expected {processes}, as {LATENCY} has values, found {len(rounds)}")
    if samples is not None and sum(rounds) != len(samples):
        raise ContentError(f"{where}.rounds: expected {len(samples)} in sum, as stats.data has, found {sum(rounds)}")


def _check_metrics(data: Mapping[str, Any], where: str) -> dict[str, Metric]:
    for name, value in data.items():
        if not isinstance(value, dict):
            raise ContentError(f"{where}.{name}: expected an object, found {_found(value)}")
        # They are judged on a logarithm.
        times_or_rates = value.get("kind") in ("noisy", "ceiling")
        _text(value, f"{where}.{name}", "unit")
        values = _value(value, f"{where}.{name}", "values", list)
        _numbers(values, f"{where}.{name}.values", positive=times_or_rates)
    try:
        metrics = read_metrics(data)
    except (TypeError, ValueError) as error:
        raise ContentError(f"{where}.{error}") from error
    if LATENCY not in metrics:
        raise ContentError(f"{where}.{LATENCY}: missing")
    if metrics[LATENCY].kind != "noisy":
        raise ContentError(f"{where}.{LATENCY}.kind: expected noisy, found {metrics[LATENCY].kind}")
    return metrics


def _versions(data: Mapping[str, Any], where: str) -> None:
    toolchain = _value(data, where, "toolchain", dict)
    for name in toolchain:
        _text(toolchain, f"{where}.toolchain", name)


def _text(data: Mapping[str, Any], where: str, name: str) -> None:
    if not _value(data, where, name, str):
        raise ContentError(f"{_join(where, name)}: expected a text, found an empty one")


def _value(data: Mapping[str, Any], where: str, name: str, kind: Any, default: Any = None) -> Any:
    """A field of a given kind; a default of None makes it one that has to be there."""
    value = data.get(name, default)
    if name not in data and default is None:
        raise ContentError(f"{_join(where, name)}: missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {dict: "an object", list: "a list", str: "a text"}
        raise ContentError(f"{_join(where, name)}: expected {names.get(kind, 'a number')}, found {_found(value)}")
    return value


def _numbers(values: Sequence[Any], where: str, *, positive: bool) -> None:
    kind = "positive finite numbers" if positive else "finite numbers"
    if not values:
        raise ContentError(f"{where}: expected a list of {kind}, found none")
    for value in values:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            good = good and math.isfinite(value) and (value > 0 or not positive)
        except OverflowError:  # an integer that no float holds
            good = False
        if not good:
            raise ContentError(f"{where}: expected {kind}, found {_found(value)}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _found(value: Any) -> str:
    """A value as an error names it: whole while it is short."""
    text = repr(value) if not isinstance(value, dict | list) else ""
    return text if 0 < len(text) < 60 else type(value).__name__
