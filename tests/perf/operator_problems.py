"""The problems of the operators beside the scan: Bamba-9B's mixer, sizes by machine, work by formula."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels import get_op
from tests.perf.problems import DEVICE, DTYPE, ON_GPU

NHEADS, HEADDIM, D_STATE, WIDTH = 128, 64, 128, 4
D_INNER = NHEADS * HEADDIM
CHANNELS = D_INNER + 2 * D_STATE
TOKENS = 8192 if ON_GPU else 256
BATCH = 64 if ON_GPU else 8
STEP_BATCHES = [1, 64, 256] if ON_GPU else [1, 4]
STATE_DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]


@dataclass(frozen=True, kw_only=True)
class OperatorProblem:
    """One call of an operator; what it updates in place is at rest, so that every call has the same result."""

    operator: str
    name: str
    tokens: int
    bytes: int
    flops: int
    make: Callable[[], dict[str, Any]]
    worse: dict[str, Any] | None = None  # a configuration that works and is slow, of the kernel `tuned`
    tuned: str = ""

    def exact(self, inputs: dict[str, Any]) -> Tensor:
        """The result in fp64, by the torch form that the correctness suite holds to its definition."""
        upcast = {name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        result = get_op(self.operator, "torch")(**upcast)
        assert isinstance(result, Tensor)
        return result


def _conv() -> dict[str, Any]:
    """A view into the projection's output."""
    return {"x": _normal(1, TOKENS, 2 * CHANNELS)[..., CHANNELS:], **_taps()}


def _conv_step() -> dict[str, Any]:
    x = _normal(BATCH, CHANNELS)
    return {"x": x, "window": _resting_window(x), **_taps()}


def _norm(groups: int) -> dict[str, Any]:
    y, z = _normal(1, TOKENS, D_INNER), _normal(1, TOKENS, 2 * D_INNER)[..., :D_INNER]
    return {"y": y, "z": z, "weight": _normal(D_INNER), "eps": 1e-5, "groups": groups}


def _step(batch: int, state_dtype: torch.dtype) -> dict[str, Any]:
    x, B, C = _normal(batch, CHANNELS).split([D_INNER, D_STATE, D_STATE], dim=-1)
    x, B, C = (part.unflatten(-1, (heads, -1)) for part, heads in ((x, NHEADS), (B, 1), (C, 1)))
    heads = _heads(batch)
    return {"state": _resting_state(x, B, heads).to(state_dtype), "x": x, "B": B, "C": C, **heads}


def _mixer_step(batch: int) -> dict[str, Any]:
    xBC, heads, taps = _normal(batch, CHANNELS), _heads(batch), _taps()
    window = _resting_window(xBC)
    convolved = get_op("causal_conv1d_step", "torch")(xBC, window.clone(), **taps)
    x, B, _ = convolved.split([D_INNER, D_STATE, D_STATE], dim=-1)
    state = _resting_state(x.unflatten(-1, (NHEADS, HEADDIM)), B.unflatten(-1, (1, -1)), heads)
    return {"xBC": xBC, "z": None, "window": window, "state": state, **taps, **heads}


def _heads(batch: int) -> dict[str, Any]:
    dt_bias = torch.linspace(-6.0, -2.0, NHEADS, device=DEVICE)
    A = -torch.linspace(1.0, 16.0, NHEADS, device=DEVICE)
    D = torch.ones(NHEADS, device=DEVICE)
    return {"dt": _normal(batch, NHEADS), "A": A, "D": D, "dt_bias": dt_bias, "dt_softplus": True}


def _taps() -> dict[str, Any]:
    return {"weight": _normal(CHANNELS, WIDTH), "bias": _normal(CHANNELS), "activation": "silu"}


def _resting_window(x: Tensor) -> Tensor:
    """The window that a token leaves as it is: all inputs the same."""
    return x[..., None].expand(-1, -1, WIDTH - 1).contiguous()


def _resting_state(x: Tensor, B: Tensor, heads: dict[str, Any]) -> Tensor:
    """The state that a token leaves as it is: h = decay · h + step · x Bᵀ."""
    step = F.softplus(heads["dt"].double() + heads["dt_bias"].double())
    share = step / -torch.expm1(step * heads["A"].double())
    return (share[..., None, None] * x.double()[..., None] * B.double()[:, :, None, :]).float()


def _normal(*shape: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, device=DEVICE, dtype=DTYPE)


def _problems() -> Iterator[OperatorProblem]:
    size, state = DTYPE.itemsize, NHEADS * HEADDIM * D_STATE
    row = (CHANNELS + D_INNER + NHEADS) * size  # what a token brings to a step, and its y
    window = 2 * (WIDTH - 1) * CHANNELS * size  # read and written
    of_channel = 2 * WIDTH + 5
    yield OperatorProblem(
        operator="causal_conv1d", name=f"conv-1x{TOKENS}", tokens=TOKENS, make=_conv,
        bytes=2 * TOKENS * CHANNELS * size, flops=TOKENS * CHANNELS * of_channel, tuned="causal_conv1d",
        worse={"block": {"BLOCK_T": 8, "ROWS": 1, "BLOCK_C": 64}, "num_warps": 1, "num_stages": 2},
    )  # fmt: skip
    yield OperatorProblem(
        operator="causal_conv1d_step", name=f"conv-step-{BATCH}", tokens=BATCH, make=_conv_step,
        bytes=BATCH * (window + 2 * CHANNELS * size), flops=BATCH * CHANNELS * of_channel, tuned="causal_conv1d_step",
        worse={"block": {"BLOCK_C": 8192}, "num_warps": 1, "num_stages": 2},
    )  # fmt: skip
    for groups in (1, 8):
        yield OperatorProblem(
            operator="gated_rms_norm", name=f"norm-1x{TOKENS}-in-{groups}", tokens=TOKENS, make=partial(_norm, groups),
            bytes=3 * TOKENS * D_INNER * size, flops=TOKENS * D_INNER * 10, tuned="gated_rms_norm",
            worse={"block": {"BLOCK": 256, "ROWS": 1, "STAGES": 1}, "num_warps": 1, "num_stages": 2},
        )  # fmt: skip
    for batch, dtype in itertools.product(STEP_BATCHES, STATE_DTYPES):
        name = f"ssd-step-{batch}-{str(dtype).removeprefix('torch.')}"
        yield OperatorProblem(
            operator="ssd_step", name=name, tokens=batch, make=partial(_step, batch, dtype),
            bytes=batch * (2 * state * dtype.itemsize + row), flops=batch * state * 6, tuned="ssd_step",
            worse={"block": {"BLOCK_P": 1, "BLOCK_N": D_STATE}, "num_warps": 1, "num_stages": 2},
        )  # fmt: skip
    for batch in STEP_BATCHES[:2]:
        yield OperatorProblem(
            operator="mixer_step", name=f"mixer-step-{batch}", tokens=batch, make=partial(_mixer_step, batch),
            bytes=batch * (2 * state * 4 + row + window), flops=batch * state * 6,
        )  # fmt: skip


PROBLEMS = list(_problems())
