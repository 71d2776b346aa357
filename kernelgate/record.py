"""Making a baseline file out of the benchmarks of a run."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelgate import baseline
from kernelgate.baseline import Baseline, BaselineError
from kernelgate.machine import Machine, toolchain
from kernelgate.metrics import Metric
from kernelgate.project import LOCAL_FOLDER, ignored_by_git
from kernelgate.verdict import compare_ceilings


def stamp(document: dict[str, Any], machine: Machine, **facts: Any) -> None:
    """Mark a document in pytest-benchmark's format as one that can be compared with, and seal it."""
    document["kernelgate"] = {
        "schema": baseline.SCHEMA,
        "machine_class": machine.name,
        "toolchain": toolchain(),
        **facts,
    }
    document["kernelgate"] = baseline.seal(document)["kernelgate"]


def lock_file(root: Path) -> Path:
    """The file that serialises whoever changes baselines of a project, in a folder that git ignores."""
    return ignored_by_git(root / LOCAL_FOLDER) / "baselines.lock"


def record(
    config: pytest.Config,
    folder: Path,
    *,
    machine: Machine,
    reason: str,
    commit: str,
    measured: Collection[str],
    carried: Sequence[Mapping[str, Any]],
) -> Path:
    """Write the next baseline of a folder, or leave the folder as it is.

    Args:
        config: The run's.
        folder: The machine class's folder.
        machine: The machine it was measured on.
        reason: Why there is a new baseline.
        commit: What was measured.
        measured: Node ids of the run's benchmarks that go into it.
        carried: Entries of the previous baseline that go into it as they are.

    Raises:
        pytest.UsageError: It cannot be written, or it would be one that cannot be read.
    """
    session = config._benchmarksession  # type: ignore[attr-defined]
    commit_info = config.hook.pytest_benchmark_generate_commit_info(config=config)
    document: dict[str, Any] = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[benchmark for benchmark in session.benchmarks if benchmark.fullname in measured],
        include_data=True,
        machine_info=session.get_machine_info(),
        commit_info={**commit_info, "id": commit},
    )
    document["benchmarks"] += carried
    stamp(document, machine, reason=reason)
    try:
        return baseline.write(folder, document, commit[:10], lock=lock_file(config.rootpath))
    except (OSError, BaselineError) as error:
        raise pytest.UsageError(f"no baseline was recorded: {error}") from error


def moved_ceilings(previous: Baseline, metrics: Mapping[str, Metric], device: str, tolerance: float) -> list[str]:
    """How the machine's state differs from the one that its newest baseline was recorded in; empty if it does not.

    Args:
        previous: The newest baseline of the machine class.
        metrics: What a benchmark shows now.
        device: Where it ran. GPUs of a machine class are interchangeable, a GPU and its host are not.
        tolerance: Ceilings further apart than this fraction belong to machines in different states.
    """
    pooled: dict[str, list[float]] = defaultdict(list)
    for entry in previous.entries.values():
        if str(entry.details.get("device")).partition(":")[0] == device.partition(":")[0]:
            for name, metric in entry.metrics.items():
                if metric.kind == "ceiling" and name in metrics:
                    pooled[name] += metric.values
    before = {name: replace(metrics[name], values=tuple(values)) for name, values in pooled.items()}
    return compare_ceilings(before, metrics, tolerance)
