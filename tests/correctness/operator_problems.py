"""Drawn problems of the operators around the scan, with the definition of each, to be run in any precision."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from ssd_kernels.checks import FLOATING
from ssd_kernels.portable.configs import causal_conv1d_config
from tests.correctness.budget import assert_within_budget
from tests.correctness.problems import DEVICE, DT_REGIMES, in_each_dtype

# Channels: fewer than a block of the kernel, and more. In the interpreter every block costs milliseconds.
CHANNELS = [24, 200] if DEVICE == "cuda" else [3, 130]
BLOCK_T = causal_conv1d_config().block["BLOCK_T"]  # tokens of a program of the convolution
MAX_LENGTH = 3 * BLOCK_T if DEVICE == "cuda" else BLOCK_T + 8
# The interpreter truncates where a GPU rounds to bf16; these kernels have no product for it to get wrong in fp16.
TRITON_DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
implementations = in_each_dtype(torch=FLOATING, triton=TRITON_DTYPES)
in_fp32 = pytest.mark.parametrize("name", ["torch", "triton"])


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors are full of NaN, so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


class Filler:
    """Seeded tensors on the device of the tests; a strided one is a slice of a wider tensor that is NaN elsewhere."""

    def __init__(self, seed: int, dtype: torch.dtype, strided: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.strided = strided

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(DEVICE, dtype or self.dtype)
        if not self.strided:
            return values
        wide = torch.full((*shape[:-1], shape[-1] + 5), float("nan"), dtype=values.dtype, device=DEVICE)
        wide[..., 2:-3] = values
        return wide[..., 2:-3]


def assert_right(actual: Tensor, exact: Tensor, by_torch: Tensor, *, what: str = "y") -> None:
    """Within the budget; in fp64, where the definition itself is rounded too, within a hundred ulps of the largest."""
    if actual.dtype != torch.float64:
        assert_within_budget(actual, exact, by_torch, what=what)
    elif exact.numel():
        difference = (actual - exact).abs().max()
        allowed = 100 * torch.finfo(torch.float64).eps * exact.abs().max()
        assert difference <= allowed, f"{what}: difference {difference:.3e}, allowed {allowed:.3e}"


@dataclass(frozen=True, kw_only=True)
class StepProblem:
    """The structure of one call of ssd_step."""

    batch: int
    nheads: int
    ngroups: int
    headdim: int
    d_state: int
    state_dtype: torch.dtype | None = None  # of x, if fp64; or fp32
    slots: tuple[int, ...] | None = None
    nslots: int
    skip: str | None = "head"
    gate: bool = True
    bias: bool = True
    softplus: bool = True
    dt_regime: str = "typical"
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    strided: bool = False
    index_dtype: torch.dtype = torch.int32
    seed: int = 0

    def traits(self) -> Iterator[str]:
        """The cases that this problem is one of."""
        if self.slots is not None and self.slots != tuple(sorted(self.slots)):
            yield "permuted_slots"
        if self.nslots > self.batch:
            yield "spare_slots"
        if 1 < self.ngroups < self.nheads:
            yield "grouped"
        if self.headdim * self.d_state > 4096:
            yield "several_tiles"
        if self.strided:
            yield "strided"
        if self.state_dtype is not None:
            yield "state_16_bit"
        yield f"skip_{self.skip}"
        yield "gate" if self.gate else "no_gate"
        yield self.dt_regime

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int | None = None) -> dict[str, Any]:
        """The arguments of ssd_step, as keywords."""
        fill = Filler(self.seed if seed is None else seed, dtype, self.strided)
        single = torch.promote_types(dtype, torch.float32)
        mean, spread, (low, high) = DT_REGIMES[self.dt_regime]
        shape = (self.batch, self.nheads, self.headdim)
        B, C = (fill.normal(self.batch, self.ngroups, self.d_state) * self.d_state**-0.25 for _ in range(2))
        dt = fill.normal(self.batch, self.nheads, dtype=torch.float64) * spread + (0.0 if self.bias else mean)
        A = torch.empty(self.nheads, dtype=torch.float64).uniform_(low, high, generator=fill.generator)
        D = {None: None, "head": (self.nheads,), "channel": (self.nheads, self.headdim)}[self.skip]
        bias = fill.normal(self.nheads, dtype=single) * 0.1 + mean * self.softplus
        slots = None if self.slots is None else torch.tensor(self.slots, dtype=self.index_dtype, device=DEVICE)
        state_shape = (self.nslots, self.nheads, self.headdim, self.d_state)
        return {
            "state": fill.normal(*state_shape, dtype=self.state_dtype or single),
            "x": fill.normal(*shape),
            "dt": (dt if self.softplus else dt.abs() / 10).to(DEVICE, dtype),
            "A": -A.to(DEVICE, single),
            "B": B,
            "C": C,
            "D": None if D is None else fill.normal(*D, dtype=single),
            "z": fill.normal(*shape) if self.gate else None,
            "dt_bias": bias if self.bias else None,
            "dt_softplus": self.softplus,
            "dt_limit": self.dt_limit,
            "slots": slots,
        }

    def but(self, **changes: Any) -> "StepProblem":
        """This problem with some fields changed."""
        return replace(self, **changes)


@st.composite
def step_problems(draw: st.DrawFn, **fixed: Any) -> StepProblem:
    """Problems of every structure; fewer rows than slots, and the rows in any order of them, as often as not."""
    batch, spare = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    ngroups, heads_per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    headdim, d_state = draw(st.sampled_from([(8, 16), (5, 7), (40, 130)]))
    order = draw(st.permutations(range(batch + spare)))
    fields = {
        "batch": batch,
        "nheads": ngroups * heads_per_group,
        "ngroups": ngroups,
        "headdim": headdim,
        "d_state": d_state,
        "state_dtype": draw(st.sampled_from([None, *(dtype for dtype in TRITON_DTYPES if dtype.itemsize == 2)])),
        "slots": draw(st.sampled_from([None, tuple(order[:batch])])),
        "nslots": batch + spare,
        "skip": draw(st.sampled_from([None, "head", "channel"])),
        "gate": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "softplus": draw(st.booleans()),
        "dt_regime": draw(st.sampled_from(list(DT_REGIMES))),
        "dt_limit": draw(st.sampled_from([(0.0, float("inf")), (0.0, 0.05), (0.01, 0.1)])),
        "strided": draw(st.booleans()),
        "index_dtype": draw(st.sampled_from([torch.int32, torch.int64])),
        "seed": draw(st.integers(0, 2**16)),
    }
    return StepProblem(**{**fields, **fixed})


@dataclass(frozen=True, kw_only=True)
class ConvProblem:
    """The structure of one call of causal_conv1d: a batch of equal lengths, or packed sequences of any."""

    lengths: tuple[int, ...]
    packed: bool
    channels: int
    width: int = 4
    bias: bool = True
    activation: str | None = "silu"
    initial: bool = True
    strided: bool = False
    index_dtype: torch.dtype = torch.int32
    seed: int = 0

    def traits(self) -> Iterator[str]:
        """The cases that this problem is one of."""
        if self.packed:
            yield "packed"
            yield from (f"length_{length}" for length in {0, 1} & set(self.lengths))
            if len(self.lengths) > 2:
                yield "several"
        yield "initial_window" if self.initial else "no_window"
        if self.initial and any(0 < length < self.width - 1 for length in self.lengths):
            yield "shorter_than_the_window"
        if max(self.lengths, default=0) > BLOCK_T:
            yield "several_blocks"
        if self.strided:
            yield "strided"
        yield f"width_{self.width}"

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """The arguments of causal_conv1d, as keywords."""
        fill = Filler(self.seed, dtype, self.strided)
        nseqs = len(self.lengths)
        shape = (1, sum(self.lengths)) if self.packed else (nseqs, self.lengths[0])
        return {
            "x": fill.normal(*shape, self.channels),
            "weight": fill.normal(self.channels, self.width),
            "bias": fill.normal(self.channels) if self.bias else None,
            "activation": self.activation,
            "initial_window": fill.normal(nseqs, self.channels, self.width - 1) if self.initial else None,
            "cu_seqlens": cu_seqlens(self.lengths, self.index_dtype) if self.packed else None,
        }

    def but(self, **changes: Any) -> "ConvProblem":
        """This problem with some fields changed."""
        return replace(self, **changes)


@st.composite
def conv_problems(draw: st.DrawFn, **fixed: Any) -> ConvProblem:
    """Problems of every structure, weighted towards short and empty packed sequences."""
    packed = draw(st.booleans())
    length = st.one_of(st.integers(0, 3), st.integers(0, MAX_LENGTH))
    if packed:
        lengths = tuple(draw(st.lists(length, min_size=1, max_size=5)))
    else:
        lengths = (draw(st.integers(1, MAX_LENGTH)),) * draw(st.integers(1, 2))
    fields = {
        "lengths": lengths,
        "packed": packed,
        "channels": draw(st.sampled_from(CHANNELS)),
        "width": draw(st.sampled_from([4, 2, 3])),
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(["silu", None])),
        "initial": draw(st.booleans()),
        "strided": draw(st.booleans()),
        "index_dtype": draw(st.sampled_from([torch.int32, torch.int64])),
        "seed": draw(st.integers(0, 2**16)),
    }
    return ConvProblem(**{**fields, **fixed})


def cu_seqlens(lengths: tuple[int, ...], dtype: torch.dtype = torch.int32) -> Tensor:
    """The bounds of packed sequences of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=dtype, device=DEVICE)


def convolved(inputs: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The definition, by torch's own convolution of each sequence on its own: y in `dtype`, and the final window."""
    x, weight, bias = inputs["x"].to(dtype), inputs["weight"].to(dtype), inputs["bias"]
    if inputs["cu_seqlens"] is None:
        sequences = list(x)
    else:
        sequences = [x[0, start:stop] for start, stop in pairwise(inputs["cu_seqlens"].tolist())]
    outputs, windows = [], []
    for i, sequence in enumerate(sequences):
        window = x.new_zeros(x.shape[-1], weight.shape[1] - 1)
        if inputs["initial_window"] is not None:
            window = inputs["initial_window"][i].to(dtype)
        padded = torch.cat([window, sequence.T], dim=1)
        y = padded.new_zeros(x.shape[-1], 0)  # torch refuses to convolve nothing
        if len(sequence):
            y = F.conv1d(padded, weight[:, None], None if bias is None else bias.to(dtype), groups=x.shape[-1])
        outputs.append((F.silu(y) if inputs["activation"] == "silu" else y).T)
        windows.append(padded[:, len(sequence) :])
    stacked = torch.stack(outputs) if inputs["cu_seqlens"] is None else torch.cat(outputs)[None]
    return stacked, torch.stack(windows)


def stepped(inputs: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The definition, head by head and in `dtype`: y, and all slots of the state after the token."""
    state, x, B, C = (inputs[name].to(dtype) for name in ("state", "x", "B", "C"))
    state = state.clone()
    heads_per_group = x.shape[1] // B.shape[1]
    step = inputs["dt"].to(dtype)
    if inputs["dt_bias"] is not None:
        step = step + inputs["dt_bias"].to(dtype)
    if inputs["dt_softplus"]:
        step = F.softplus(step)
    step = step.clamp(*inputs["dt_limit"])
    y = torch.empty_like(x)
    for row in range(x.shape[0]):
        slot = row if inputs["slots"] is None else inputs["slots"][row]
        for head in range(x.shape[1]):
            group = head // heads_per_group
            decay = torch.exp(step[row, head] * inputs["A"][head].to(dtype))
            h = decay * state[slot, head] + torch.outer(step[row, head] * x[row, head], B[row, group])
            y[row, head] = (h * C[row, group]).sum(-1)
            if inputs["D"] is not None:
                y[row, head] += inputs["D"][head].to(dtype) * x[row, head]
            state[slot, head] = h
    if inputs["z"] is not None:
        y = y * F.silu(inputs["z"].to(dtype))
    return y, state
