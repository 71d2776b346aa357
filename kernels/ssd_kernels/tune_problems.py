"""The calls that `python -m ssd_kernels tune` makes fast, and the configurations that each may take."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssd_kernels.portable.pinned import Entry

WARPS = (1, 2, 4, 8, 16)
TOKENS = (1, 16)  # of linear_step's tiles: a token's alone, and the smallest of a product


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call to be made fast, and the configurations it may take."""

    operator: str
    kernel: str  # as the table has it
    sizes: tuple[int | str, ...]  # as of the entry in the table
    make: Callable[[torch.dtype], dict[str, Any]]  # fresh inputs; what is updated in place is `state` or `window`
    candidates: list[Entry]
    implementation: str = "triton"
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)


def operator_problems(tokens: int, batch: int) -> Iterator[Problem]:
    """Beside the scan, Bamba-9B's: 128 heads of 64, d_state 128, 8448 channels of width 4, norms over 8192 and 1024."""
    nheads, headdim, d_state, width = 128, 64, 128, 8192
    channels = width + 2 * d_state

    def conv(dtype: torch.dtype) -> dict[str, Any]:
        x = random(1, tokens, 2 * channels, dtype=dtype)[..., channels:]
        return {"x": x, **_taps(channels, dtype)}

    def conv_step(dtype: torch.dtype) -> dict[str, Any]:
        x, window = random(batch, channels, dtype=dtype), random(batch, channels, 3, dtype=dtype)
        return {"x": x, "window": window, **_taps(channels, dtype)}

    def norm(dtype: torch.dtype, *, groups: int) -> dict[str, Any]:
        y, z = random(1, tokens, width, dtype=dtype), random(1, tokens, 2 * width, dtype=dtype)[..., :width]
        return {"y": y, "z": z, "weight": random(width, dtype=dtype), "eps": 1e-5, "groups": groups}

    def step(dtype: torch.dtype) -> dict[str, Any]:
        x, B, C = random(batch, channels, dtype=dtype).split([width, d_state, d_state], dim=-1)
        head = {"A": -torch.rand(nheads, device=x.device) - 1, "D": torch.rand(nheads, device=x.device)}
        dt = {"dt": random(batch, nheads, dtype=dtype), "dt_bias": head["A"], "dt_softplus": True}
        state = random(batch, nheads, headdim, d_state, dtype=torch.float32)
        B, C = B.unflatten(-1, (1, d_state)), C.unflatten(-1, (1, d_state))
        return {"state": state, "x": x.unflatten(-1, (nheads, headdim)), "B": B, "C": C, **head, **dt}

    conv_blocks = {"BLOCK_T": (16, 32, 64, 128), "ROWS": (4, 8, 16), "BLOCK_C": (128, 256, 512, 1024)}
    yield Problem(operator="causal_conv1d", kernel="causal_conv1d", sizes=(), make=conv, candidates=[
        entry for entry in _entries(conv_blocks, (1, 2, 4)) if entry["block"]["ROWS"] <= entry["block"]["BLOCK_T"]
        and entry["block"]["BLOCK_C"] in (128 * entry["num_warps"], 256 * entry["num_warps"])
    ])  # fmt: skip
    candidates = [*_entries({"BLOCK_C": (64, 128, 256, 512, 1024)}, WARPS[:4])]
    yield Problem(
        operator="causal_conv1d_step", kernel="causal_conv1d_step", sizes=(), make=conv_step, candidates=candidates
    )
    for groups in (1, 8):
        blocks = {"BLOCK": (width // groups,), "ROWS": (1, 2, 4, 8, 16), "STAGES": (1, 2, 3)}
        yield Problem(
            operator="gated_rms_norm", kernel="gated_rms_norm", sizes=(width // groups,),
            make=partial(norm, groups=groups), candidates=[
                entry for entry in _entries(blocks, WARPS)
                if entry["block"]["BLOCK"] // 32 // entry["num_warps"] in (8, 16, 32, 64)
                and entry["block"]["STAGES"] <= entry["block"]["ROWS"]
            ],
        )  # fmt: skip
    blocks = {"BLOCK_P": (4, 8, 16, 32, 64), "BLOCK_N": (d_state,)}
    candidates = [
        entry for entry in _entries(blocks, WARPS) if 8 <= entry["block"]["BLOCK_P"] * 4 // entry["num_warps"] <= 64
    ]
    yield Problem(operator="ssd_step", kernel="ssd_step", sizes=(headdim, d_state), make=step, candidates=candidates)


def linear_problems(dtype: torch.dtype) -> Iterator[Problem]:
    """A few tokens' projections of Bamba-9B's: of 4096 inputs to a mixer's 16768 and, paired, to an MLP's 14336."""
    features = 4096

    def projection(tokens: int, outputs: int, paired: bool, dtype: torch.dtype) -> dict[str, Any]:
        weights = random(1 + paired, outputs, features, dtype=dtype) / math.sqrt(features)
        return {
            "x": random(tokens, features, dtype=dtype),
            "weight": weights[0],
            "up_weight": weights[1] if paired else None,
        }

    for tokens, (outputs, paired) in itertools.product(TOKENS, ((16768, False), (14336, True))):
        if tokens == 1:
            blocks = {"BLOCK_O": (2, 4, 8, 16), "BLOCK_I": (256, 512, 1024, 2048), "STAGES": (2, 3)}
        else:
            blocks = {"BLOCK_O": (16, 32, 64, 128), "BLOCK_I": (64, 128), "STAGES": (3, 5)}
        yield Problem(
            operator="linear_step", kernel="linear_step", dtypes=(dtype,),
            sizes=(str(dtype).removeprefix("torch."), tokens, int(paired)),
            make=partial(projection, tokens, outputs, paired), candidates=[
                entry for entry in _entries({"BLOCK_B": (tokens,), **blocks}, WARPS[2:4]) if tokens > 1
                or entry["block"]["BLOCK_O"] * entry["block"]["BLOCK_I"] // 32 // entry["num_warps"] in (16, 32, 64)
            ],
        )  # fmt: skip


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    """Seeded normal numbers on the device."""
    generator = torch.Generator(device()).manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, device=device()).to(dtype)


def device() -> str:
    """Where problems are made."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _entries(blocks: Mapping[str, tuple[int, ...]], warps: tuple[int, ...]) -> Iterator[Entry]:
    for *sizes, num_warps in itertools.product(*blocks.values(), warps):
        yield {"block": dict(zip(blocks, sizes, strict=True)), "num_warps": num_warps, "num_stages": 2}


def _taps(channels: int, dtype: torch.dtype) -> dict[str, Any]:
    taps = {"weight": random(channels, 4, dtype=dtype), "bias": random(channels, dtype=dtype)}
    return {**taps, "activation": "silu"}
