"""`--gate-selftest`: how often this gate cries wolf on this machine, and what it misses.

The unchanged tree is measured in many processes, and the same tree with a fault planted in a few. The record of both is
what everything else is computed from: gates are drawn from the unchanged processes, whole processes at a time, in pairs
of neighbours as `--gate-against` takes them, and decided as a gate decides. What they call REGRESSED is a false alarm.
Faults of time are drawn the same way against unchanged processes; exact ones are judged as they are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelgate.machine import Machine, toolchain
from kernelgate.metrics import EAGER, Metric, merge, read_metrics, write_metrics
from kernelgate.plants import BYTES, COPY, ERROR, LAUNCH, SLOWER
from kernelgate.replicate import Pool

SCHEMA = 1
UNCHANGED = "unchanged"
SLOWDOWNS = (0.01, 0.02, 0.03, 0.05)
TIME_PLANTS = tuple(f"{SLOWER}:{fraction:g}" for fraction in SLOWDOWNS)
EXACT_PLANTS = ("detuned", f"{BYTES}:512", LAUNCH, f"{ERROR}:1.25", COPY)
PLANTS = (*TIME_PLANTS, *EXACT_PLANTS)
_KEPT = ("noisy", "exact", "binary", "error", "ceiling")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The processes of one self-test.

    Attributes:
        facts: Machine class, device, commit, toolchain and date.
        plants: By plant, `UNCHANGED` for none, and node id: the metrics, one value a process.
    """

    facts: Mapping[str, Any]
    plants: Mapping[str, Mapping[str, Mapping[str, Metric]]]

    @property
    def processes(self) -> int:
        """Of the unchanged tree."""
        return max((len(metrics["latency_s"].values) for metrics in self.plants[UNCHANGED].values()), default=0)


def planted_processes(processes: int) -> int:
    """How many processes measure each plant of time, where `processes` measure the unchanged tree."""
    return max(3, processes // 5)


def make_record(machine: Machine, pools: Mapping[str, Pool], *, commit: str, date: str) -> Record:
    """The record of what the processes showed, by plant."""
    plants: dict[str, dict[str, dict[str, Metric]]] = {}
    device = ""
    for plant, pool in pools.items():
        plants[plant] = {}
        for nodeid in sorted(pool.observations):
            observations = pool.of(nodeid)
            device = device or observations[0].details.get("device_id", "")
            merged = merge(observations)
            plants[plant][nodeid] = {
                name: metric for name, metric in merged.items() if metric.kind in _KEPT and name != EAGER
            }
    facts = {
        "machine_class": machine.name, "device_id": device, "commit": commit, "date": date, "toolchain": toolchain(),
    }  # fmt: skip
    return Record(facts=facts, plants=plants)


def write_record(record: Record, path: Path) -> None:
    """Write a record; times to six digits."""
    plants = {
        plant: {nodeid: _rounded(write_metrics(metrics)) for nodeid, metrics in benchmarks.items()}
        for plant, benchmarks in record.plants.items()
    }
    document = {"schema": SCHEMA, **record.facts, "plants": plants}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote.

    Raises:
        ValueError: It is no record, or of another schema; the message names file and field.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}")
        plants = {
            plant: {nodeid: read_metrics(metrics) for nodeid, metrics in benchmarks.items()}
            for plant, benchmarks in document.pop("plants").items()
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected a record of a self-test: {error}") from error
    return Record(facts=document, plants=plants)


def records(folder: Path) -> list[Record]:
    """All records of a folder, in the order of their names."""
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def _rounded(metrics: dict[str, Any]) -> dict[str, Any]:
    for metric in metrics.values():
        values: Sequence[float] = metric["values"]
        metric["values"] = [value if isinstance(value, int) else float(f"{value:.6g}") for value in values]
    return metrics
