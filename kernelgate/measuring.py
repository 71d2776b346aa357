"""What an invocation measures in other processes: its own tree, or another commit's beside it, or planted faults."""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kernelgate import against, provenance, resume, selftest
from kernelgate.machine import Machine, visible_devices
from kernelgate.options import Options
from kernelgate.processes import Fresh, Launcher, Tree
from kernelgate.replicate import Replication
from kernelgate.template import Forked


@contextmanager
def prepared(
    config: pytest.Config,
    options: Options,
    machine: Machine,
    *,
    looks: Sequence[int],
    benchmarks: Collection[str],
    base_commit: str,
    write_line: Callable[[str], None],
) -> Iterator[Replication]:
    """The processes that an invocation asks for, not started yet; what they need is there until the context ends.

    Args:
        config: The run's.
        options: What it asks of the gate.
        machine: Where it runs.
        looks: Numbers of processes after which it is decided.
        benchmarks: Node ids of what is measured.
        base_commit: The commit to measure beside the tree, if one is.
        write_line: Shows progress.
    """

    def launch(tree: Tree, device: str) -> Launcher:
        environment = {"CUDA_VISIBLE_DEVICES": device} if device else _same_threads()
        fresh = Fresh(tree, environment, options.timeout)
        times_the_gpu = machine.device["type"] == "cuda"
        if options.fork == "always" or (options.fork == "auto" and times_the_gpu):
            return Forked(tree, environment, options.timeout, fresh, write_line)
        return fresh

    with ExitStack() as stack:
        trees = [against.current_tree(config, benchmarks)]
        if options.against is not None:
            base = stack.enter_context(against.checked_out(config, base_commit, options.local / "worktrees"))
            trees = [base, against.current_tree(config)]
        facts = resume.facts(config, options, machine, base_commit)
        yield Replication(
            trees=trees,
            devices=visible_devices(machine),
            looks=looks,
            folder=resume.prepare_folder(options.local, facts, resuming=options.resume, write_line=write_line),
            launch=launch,
            write_line=write_line,
        )


def measure_plants(
    unchanged: Replication, benchmarks: Collection[str], options: Options, machine: Machine, root: Path
) -> list[Path]:
    """Measure the planted faults of a self-test, and keep the records of all its processes.

    Args:
        unchanged: The processes of the tree as it is, which have run.
        benchmarks: Node ids.
        options: The run's.
        machine: Where it runs.
        root: The project's.

    Returns:
        The records' files, one for each device.
    """
    pools = {selftest.UNCHANGED: unchanged.pools[against.CURRENT]}
    count = selftest.planted_processes(options.processes)
    for plants, processes in ((selftest.TIME_PLANTS, count), (selftest.EXACT_PLANTS, 1)):
        trees = [replace(unchanged.trees[-1], name=plant, plant=plant) for plant in plants]
        planted = replace(unchanged, trees=trees, looks=(processes,), pools={}, children=[])
        planted.run(benchmarks, lambda _: False)
        pools |= planted.pools
    now = datetime.now(UTC)
    folder, paths = options.local / selftest.FOLDER / machine.name, []
    for record in selftest.make_records(machine, pools, commit=provenance.describe(root), date=now.date().isoformat()):
        device = record.facts["device_id"]
        paths.append(folder / f"{now:%Y%m%dT%H%M%S}{f'-{device}' if device else ''}.json")
        selftest.write_record(record, paths[-1])
    return paths


def _same_threads() -> dict[str, str]:
    """As many threads in every process as torch would take here, whatever cores are to be had when one starts."""
    torch = sys.modules.get("torch")
    return {"OMP_NUM_THREADS": str(torch.get_num_threads())} if torch is not None else {}
