"""What a run is compared with: a stored baseline, or another commit measured beside it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelgate.baseline import Baseline, BaselineError, Entry, files, find, load
from kernelgate.machine import Machine
from kernelgate.metrics import Observation, merge
from kernelgate.options import Options


def find_baseline(config: pytest.Config, options: Options, machine: Machine) -> Baseline | None:
    """The baseline that an invocation asks for; None where its class has none and a local one is still to be made.

    Raises:
        BaselineError: There is none where one was named, or it cannot be read.
    """
    selector = options.compare or ""
    if selector.endswith(".json"):
        return _load(Path(config.invocation_params.dir, selector), machine)
    if options.record is not None:
        folders = [options.baselines / machine.name]
    elif options.storage is None:
        folders = [options.baselines / machine.name, options.local / machine.name]
    else:
        stock_id = config._benchmarksession.machine_id  # type: ignore[attr-defined]
        folders = [options.storage / machine.name, options.storage, options.storage / stock_id]
    folder = next((folder for folder in folders if files(folder)), None)
    if folder is None and options.compare is not None and (selector or options.storage is not None):
        raise BaselineError(f"no baseline for machine class {machine.name} in {', '.join(map(str, folders))}")
    if folder is None:
        return None
    return _load(find(folder, selector) if selector else files(folder)[-1], machine)


def measured_entry(observations: Sequence[Observation]) -> Entry | None:
    """An entry as a baseline has it, of what was measured just now; None where nothing was."""
    if not observations:
        return None
    return Entry(metrics=merge(observations), details=observations[0].details, stored={})


def _load(path: Path, machine: Machine) -> Baseline:
    baseline = load(path)
    if baseline.machine_class != machine.name:
        raise BaselineError(
            f"{path}: recorded on machine class {baseline.machine_class}, and this is {machine.name}: "
            "times of different machines cannot be compared"
        )
    return baseline
