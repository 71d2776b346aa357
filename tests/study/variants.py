"""Each idea of the Hopper scan on and off: what a constant or a configuration changes, and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest

from ssd_kernels.device import multiprocessors
from ssd_kernels.hopper import configs
from ssd_kernels.interface import Sizes
from ssd_kernels.portable.pinned import imposed
from ssd_kernels.repeating import forget
from tests.perf.problems import DEVICE, ScanProblem
from tests.study.tables import SHIPPED

Change = Callable[[ScanProblem], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    change: Change = lambda _: nullcontext()
    scan: str = "hopper"
    chunk_size: int = 256
    decay: float = 1.0  # times that of a freshly initialised layer


def constant(name: str, value: Any) -> Change:
    """Another value of a constant of :mod:`ssd_kernels.hopper.configs`."""

    @contextmanager
    def change(_: ScanProblem) -> Iterator[None]:
        if getattr(configs, name) == value:
            pytest.skip(f"as it is: {name} = {value}")
        with mock.patch.object(configs, name, value):
            forget()
            yield
        forget()

    return change


def scan(*, consumers: int | None = None, segments: int | None = None, fewer_stages: int = 0) -> Change:
    """Another configuration of the scan, with as many stages as shared memory holds, or fewer."""

    def change(problem: ScanProblem) -> AbstractContextManager[None]:
        sizes = Sizes(
            batch=problem.batch, seqlen=problem.seqlen, nheads=problem.nheads, headdim=problem.headdim,
            ngroups=problem.ngroups, d_state=problem.d_state,
        )  # fmt: skip
        chosen = configs.entry_of(configs.scan_config(sizes, None, multiprocessors(DEVICE)))
        block = dict(chosen["block"])
        if consumers is not None:
            block["CONSUMERS"] = consumers
        if segments is not None:
            block |= {"SEGMENTS": segments, "PIECES": 1}
        found = [each for each in configs.scan_candidates(sizes, None) if each["block"] == block]
        if len(found) <= fewer_stages:
            pytest.skip(f"not to be had for these sizes: {block}")
        asked = sorted(found, key=lambda each: -each["num_stages"])[fewer_stages]
        if asked == chosen:
            pytest.skip(f"as it ships: {block}")
        return imposed("hopper_scan", asked)

    return change


def prepare(heads: float) -> Change:
    """So many times the heads in a program of the preparation."""

    def change(_: ScanProblem) -> AbstractContextManager[None]:
        config = configs.prepare_config()
        block = {**config.block, "BLOCK_H": int(config.block["BLOCK_H"] * heads)}
        entry = {"block": block, "num_warps": config.num_warps, "num_stages": config.num_stages}
        return imposed("hopper_prepare", entry)

    return change


VARIANTS = {
    SHIPPED: Variant(),
    "scan put on the device early": Variant(change=constant("EARLY_START", True)),
    "scan put on the device after the preparation": Variant(change=constant("EARLY_START", False)),
    "each chunk scaled by itself": Variant(change=constant("GROUP_RANGE", 0.0)),
    "TMA in at least 2 dimensions": Variant(change=constant("TILE_RANK", 2)),
    "TMA in 4 dimensions": Variant(change=constant("TILE_RANK", 4)),
    "one part of a head a program": Variant(change=scan(consumers=1)),
    "two parts a program, sharing B, C and CB": Variant(change=scan(consumers=2)),
    "one stage fewer": Variant(change=scan(fewer_stages=1)),
    "one segment": Variant(change=scan(segments=1)),
    "two segments": Variant(change=scan(segments=2)),
    "four segments": Variant(change=scan(segments=4)),
    "half the heads in a program of the preparation": Variant(change=prepare(0.5)),
    "twice the heads in a program of the preparation": Variant(change=prepare(2)),
    "portable": Variant(scan="portable"),
    "portable, chunks of 32 asked for": Variant(scan="portable", chunk_size=32),
    # The fewest nats of a chunk are then about 300, where 139 are 2^200.
    "every chunk decays by more than 2^200": Variant(decay=3000.0),
}
