"""The calls of the scan that `python -m ssd_kernels tune` makes fast, and the configurations that each may take."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ssd_kernels.explain import explain
from ssd_kernels.hopper.configs import prepare_candidates, scan_candidates, size_class
from ssd_kernels.interface import Sizes
from ssd_kernels.portable.pinned import Entry, asked
from ssd_kernels.tune_problems import Problem, device, random

# batch, tokens of a sequence
SHAPES = ((1, 1024), (1, 2048), (1, 8192), (1, 32768), (8, 2048), (32, 1024))
NHEADS, HEADDIM, D_STATE = 128, 64, 128


def hopper_problems(tokens: int, shapes: Sequence[tuple[int, int]]) -> Iterator[Problem]:
    """Bamba-9B's: the scan of each shape, for which a rule has a choice of its own, and the preparation of `tokens`."""
    only: Any = {"operator": "ssd", "implementation": "hopper", "dtypes": (torch.bfloat16,)}
    yield Problem(
        kernel="hopper_prepare", sizes=(), make=partial(scan_inputs, 1, tokens), candidates=prepare_candidates(), **only
    )
    for batch, seqlen in shapes:
        sizes = Sizes(batch=batch, seqlen=seqlen, nheads=NHEADS, headdim=HEADDIM, ngroups=1, d_state=D_STATE)
        yield Problem(
            kernel="hopper_scan", sizes=size_class(sizes, None), make=partial(scan_inputs, batch, seqlen),
            candidates=scan_candidates(sizes, None), **only,
        )  # fmt: skip


def portable_problems(dtype: torch.dtype, shapes: Sequence[tuple[int, int]]) -> Iterator[Problem]:
    """The longest kernel of the portable scan, once where shapes share a configuration: at the longest."""
    found = {}
    for batch, seqlen in sorted(shapes, key=math.prod):
        make = partial(scan_inputs, batch, seqlen)
        said = explain("ssd", implementation="portable", **make(dtype))
        config = [kernel.config for kernel in said.kernels if kernel.name == "_chunk_scan_kernel"][-1]
        sizes = asked("chunk_scan")
        found[sizes] = Problem(
            operator="ssd", implementation="portable", kernel="chunk_scan", sizes=sizes, dtypes=(dtype,), make=make,
            candidates=around(config),
        )  # fmt: skip
    yield from found.values()


def around(config: dict[str, int]) -> list[Entry]:
    """A configuration, as a launch takes it, and those with halves and doubles of its tiles and warps."""
    halves = {name: (value // 2, value, 2 * value) for name, value in config.items() if name != "num_stages"}
    halves["num_stages"] = (1, 2, 3)
    found = []
    for values in itertools.product(*halves.values()):
        block = dict(zip(halves, values, strict=True))
        stages, warps = block.pop("num_stages"), block.pop("num_warps")
        if min(warps, *block.values()) >= 1 and warps <= 16:
            found.append({"block": block, "num_warps": warps, "num_stages": stages})
    return found


def scan_inputs(batch: int, seqlen: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the scan with the decays of a freshly initialised layer; x, B and C are views of one tensor."""
    channels = NHEADS * HEADDIM
    x, B, C = random(batch, seqlen, channels + 2 * D_STATE, dtype=dtype).split([channels, D_STATE, D_STATE], dim=-1)
    generator = torch.Generator(device()).manual_seed(0)
    uniform = torch.rand(2, NHEADS, generator=generator, device=device())
    step = torch.exp(uniform[0] * math.log(100) + math.log(1e-3))
    return {
        "x": x.unflatten(-1, (NHEADS, HEADDIM)),
        "dt": random(batch, seqlen, NHEADS, dtype=dtype),
        "A": -(1 + 15 * uniform[1]),
        "B": B.unflatten(-1, (1, D_STATE)),
        "C": C.unflatten(-1, (1, D_STATE)),
        "chunk_size": 256,
        "D": torch.ones(NHEADS, device=device()),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
        "dt_softplus": True,
        "return_final_state": True,
    }
