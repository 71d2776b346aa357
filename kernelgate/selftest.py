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

from kernelgate.baseline import Baseline
from kernelgate.machine import Machine, toolchain
from kernelgate.metrics import LATENCY, Metric, Observation, merge, read_metrics, write_metrics
from kernelgate.plants import BYTES, COPY, ERROR, LAUNCH, SLOWER
from kernelgate.replicate import Pool

SCHEMA = 1
FOLDER = "selftests"  # in the folder of a machine class
UNCHANGED = "unchanged"
SLOWDOWNS = (0.01, 0.02, 0.03, 0.05)
TIME_PLANTS = tuple(f"{SLOWER}:{fraction:g}" for fraction in SLOWDOWNS)
EXACT_PLANTS = ("detuned", f"{BYTES}:512", LAUNCH, f"{ERROR}:1.25", COPY)


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
        return min((len(metrics[LATENCY].values) for metrics in self.plants[UNCHANGED].values()), default=0)


def planted_processes(processes: int) -> int:
    """How many processes measure each plant of time, where `processes` measure the unchanged tree."""
    return max(3, processes // 5)


def make_records(machine: Machine, pools: Mapping[str, Pool], *, commit: str, date: str) -> list[Record]:
    """The records of what the processes showed, by plant: one for each device that measured the unchanged tree."""
    observed = pools[UNCHANGED].observations.values()
    devices = sorted({_device(each) for processes in observed for each in processes.values()})
    found = []
    for device in devices:
        plants = {plant: _on(pool, device, only_time=plant in TIME_PLANTS) for plant, pool in pools.items()}
        facts = {
            "machine_class": machine.name, "device_id": device, "commit": commit, "date": date,
            "toolchain": toolchain(),
        }  # fmt: skip
        found.append(Record(facts=facts, plants=plants))
    return found


def write_record(record: Record, path: Path) -> None:
    """Write a record; times to six digits, a value that all processes share once."""
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
            plant: {nodeid: read_metrics(_repeated(metrics)) for nodeid, metrics in benchmarks.items()}
            for plant, benchmarks in document.pop("plants").items()
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected a record of a self-test: {error}") from error
    return Record(facts=document, plants=plants)


def record_of(baseline: Baseline) -> Record | None:
    """The processes that a baseline was made of, as a record of the unchanged tree.

    None where they did not all run on one device, or on one that is not known: pairs of them would compare devices.
    """
    devices = {entry.details.get("device_id") for entry in baseline.entries.values()}
    if len(devices) != 1 or None in devices:
        return None
    unchanged = {nodeid: _kept(entry.metrics, only_time=False) for nodeid, entry in baseline.entries.items()}
    commit = baseline.document.get("commit_info", {}).get("id", "")
    facts = {"machine_class": baseline.machine_class, "device_id": devices.pop(), "commit": commit}
    return Record(facts=facts, plants={UNCHANGED: unchanged})


def records(folder: Path) -> list[Record]:
    """All records of a folder, in the order of their names."""
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def _device(observation: Observation) -> str:
    return str(observation.details.get("device_id", ""))


def _on(pool: Pool, device: str, *, only_time: bool) -> dict[str, dict[str, Metric]]:
    """What the processes on one device showed, by node id."""
    found = {}
    for nodeid in sorted(pool.observations):
        if observations := [each for each in pool.of(nodeid) if _device(each) == device]:
            found[nodeid] = _kept(merge(observations), only_time=only_time)
    return found


def _kept(metrics: Mapping[str, Metric], *, only_time: bool) -> dict[str, Metric]:
    """The metrics that a drawn gate judges."""
    kinds = ("exact", "binary", "error")
    return {
        name: metric for name, metric in metrics.items() if name == LATENCY or (metric.kind in kinds and not only_time)
    }


def _rounded(metrics: dict[str, Any]) -> dict[str, Any]:
    for metric in metrics.values():
        values: Sequence[float] = metric["values"]
        rounded = [value if isinstance(value, int) else float(f"{value:.6g}") for value in values]
        if len(set(rounded)) == 1 < len(rounded):
            metric["times"] = len(rounded)
            del rounded[1:]
        metric["values"] = rounded
    return metrics


def _repeated(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {**metric, "values": metric["values"] * metric.get("times", 1)} for name, metric in metrics.items()}
