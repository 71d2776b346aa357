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

from tests.correctness.problems import DEVICE, TRITON_DTYPES

# Channels: fewer than a block of the kernel, and more. In the interpreter every block costs milliseconds.
CHANNELS = [24, 200] if DEVICE == "cuda" else [3, 130]
MAX_LENGTH = 80 if DEVICE == "cuda" else 20
implementations = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
        for name, dtypes in {
            "torch": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
            "triton": TRITON_DTYPES,
        }.items()
        for dtype in dtypes
    ],
)
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
        if max(self.lengths, default=0) > 16:
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
