"""Making a baseline file out of the benchmarks of a run."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kernelgate import baseline
from kernelgate.machine import Machine, toolchain

LOCK_FOLDER = ".kernelgate"


def stamp(document: dict[str, Any], machine: Machine, **facts: Any) -> None:
    """Mark a document in pytest-benchmark's format as one that can be compared with."""
    document["kernelgate"] = {
        "schema": baseline.SCHEMA,
        "machine_class": machine.name,
        "toolchain": toolchain(),
        **facts,
    }


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
    """Write the next baseline of a folder.

    Args:
        config: The run's.
        folder: The machine class's folder.
        machine: The machine it was measured on.
        reason: Why there is a new baseline.
        commit: What was measured.
        measured: Node ids of the run's benchmarks that go into it.
        carried: Entries of the previous baseline that go into it as they are.
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
    lock = config.rootpath / LOCK_FOLDER
    lock.mkdir(exist_ok=True)
    (lock / ".gitignore").write_text("*\n")
    return baseline.write(folder, document, commit[:10], lock=lock / "baselines.lock")
