"""Documents as a recording writes them, without the recording."""

from pathlib import Path
from typing import Any

from kernelgate.baseline import SCHEMA, seal

STATISTICS = dict.fromkeys(("min", "max", "mean", "median", "q1", "q3", "ld15iqr", "hd15iqr"), 1e-3) | {
    "stddev": 0.0,
    "iqr": 0.0,
    "ops": 1e3,
    "total": 4e-3,
    "rounds": 4,
    "iterations": 1,
    "outliers": "0;0",
}
TOOLCHAIN = {"python": "3.11.7", "triton": "3.7.1"}


def metric(*values: float, unit: str = "s", kind: str = "noisy", better: str = "lower") -> dict[str, Any]:
    """A metric as it is stored."""
    return {"values": list(values), "unit": unit, "kind": kind, "better": better}


def entry(name: str = "test_work", latency: float = 1e-3, **metrics: Any) -> dict[str, Any]:
    """A benchmark of two processes with two rounds each."""
    metrics = {
        "latency_s": metric(latency, latency * 1.01),
        "peak_bytes": metric(4096, 4096, unit="B", kind="exact"),
        "numerical_error": metric(1e-3, 2e-3, unit="1", kind="error"),
        "ceiling_copy": metric(1e12, 1e12, unit="B/s", kind="ceiling", better="higher"),
    } | metrics
    details = {
        "rounds": [2, 2],
        "device": "cpu",
        "toolchain": dict(TOOLCHAIN),
        "kernels": [{"name": "_kernel", "binary": "79bf24bafe73652a", "launches": 1}],
        "metrics": metrics,
    }
    return {
        "group": None,
        "name": name,
        "fullname": f"test_it.py::{name}",
        "params": None,
        "param": None,
        "extra_info": details,
        "options": {"disable_gc": True, "timer": "perf_counter"},
        "stats": {**STATISTICS, "data": [1e-3, 1e-3, 1e-3, 1e-3]},
    }


def document(*entries: dict[str, Any], schema: int = SCHEMA, **changes: Any) -> dict[str, Any]:
    """A baseline's content, sealed where its schema has a checksum."""
    block = {"schema": schema, "machine_class": "test-box", "toolchain": dict(TOOLCHAIN), "reason": "because"}
    content = {
        "machine_info": {"node": "box"},
        "commit_info": {"id": "0123456789abcdef", "branch": "main"},
        "benchmarks": list(entries) or [entry()],
        "datetime": "2026-11-22T09:59:11.355808+00:00",
        "version": "5.3.1",
        "kernelgate": block,
    } | changes
    return seal(content) if schema > 1 else content


def stored(folder: Path, text: str, name: str = "0001_abc.json") -> Path:
    """A baseline file with a given text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
