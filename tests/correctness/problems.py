"""Drawn SSD problems: hypothesis draws the structure, a seeded generator fills the tensors."""

import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pynvml
import pytest
import torch
from hypothesis import event, strategies as st
from torch import Tensor


def compute_capability() -> tuple[int, int] | None:
    """Of the first GPU, by NVML: torch would open it, and to collect the tests must not, or no gate finds it unused."""
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(0))
        return tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    except pynvml.NVMLError:
        return None


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOPPER = DEVICE == "cuda" and compute_capability() == (9, 0)
# In the interpreter a bf16 or fp16 product is not what a GPU computes, so half precision is checked on GPUs only.
TRITON_DTYPES = [torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32]
# Every new (headdim, d_state, chunk_size) compiles anew on a GPU, while the interpreter's time grows with the sizes.
SHAPES = [(64, 128), (32, 16), (40, 24)] if DEVICE == "cuda" else [(8, 16), (5, 7), (16, 4)]
CHUNK_SIZES = [16, 64] if DEVICE == "cuda" else [5, 8, 16]
MAX_SEQLEN = 200 if DEVICE == "cuda" else 30
# (mean of dt before softplus, its spread, range of A): nats of decay a token from 1e-4 to thousands.
DT_REGIMES = {
    "typical": (-3.0, 1.0, (1.0, 16.0)),
    "slow": (-9.0, 0.5, (1e-4, 1.0)),
    "fast": (100.0, 60.0, (1.0, 200.0)),
}


def in_each_dtype(**dtypes: Sequence[torch.dtype]) -> pytest.MarkDecorator:
    """Parametrise a test over implementations by name, each in the dtypes that it takes."""
    cases = [(name, dtype) for name, each in dtypes.items() for dtype in each]
    names = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in cases]
    return pytest.mark.parametrize(("name", "dtype"), cases, ids=names)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The structure of one SSD call; `inputs` makes its tensors."""

    batch: int
    seqlen: int
    nheads: int
    ngroups: int
    headdim: int
    d_state: int
    chunk_size: int
    dt_regime: str = "typical"
    softplus: bool = True
    skip: bool = True
    bias: bool = True
    initial: bool = True
    by_channel: bool = False  # D
    lengths: tuple[int, ...] | None = None  # of packed sequences
    strided: bool = False
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    seed: int = 0

    def traits(self) -> Iterator[str]:
        """The cases that this problem is one of."""
        if self.seqlen > self.chunk_size:
            yield "multi_chunk"
            if self.seqlen % self.chunk_size:
                yield "ragged"
        if 1 < self.ngroups < self.nheads:
            yield "grouped"
        if self.initial:
            yield "initial_state"
        if self.strided:
            yield "strided"
        if self.skip and self.by_channel:
            yield "by_channel"
        yield from self._packed_traits()
        yield self.dt_regime

    def _packed_traits(self) -> Iterator[str]:
        lengths = self.lengths or ()
        if len(lengths) > 1:
            yield "several_sequences"
        if 0 in lengths:
            yield "empty_sequence"
        if 1 in lengths:
            yield "one_token"
        if any(length > self.chunk_size and length % self.chunk_size for length in lengths[:-1]):
            yield "boundary_inside_a_chunk"

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = DEVICE) -> dict[str, Any]:
        """The tensors of an SSD call, as keywords; x, B, C are views into one tensor where `strided`."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        mean, spread, (low, high) = DT_REGIMES[self.dt_regime]
        d_inner, bc = self.nheads * self.headdim, self.ngroups * self.d_state
        xBC = normal(self.batch, self.seqlen, d_inner + 2 * bc).to(device, dtype)
        xBC[..., d_inner:] *= self.d_state**-0.25  # C·B near 1, so that y stays within fp16
        parts = xBC.split([d_inner, bc, bc], dim=-1)
        if not self.strided:
            parts = tuple(part.contiguous() for part in parts)
        dt = normal(self.batch, self.seqlen, self.nheads) * spread + (0.0 if self.bias else mean)
        A = -torch.empty(self.nheads, dtype=torch.float64).uniform_(low, high, generator=generator)
        single = {"device": device, "dtype": torch.promote_types(dtype, torch.float32)}
        nstates = self.batch if self.lengths is None else len(self.lengths)
        D_shape = (self.nheads, self.headdim) if self.by_channel else (self.nheads,)
        inputs = {
            "x": parts[0].unflatten(-1, (self.nheads, self.headdim)),
            "dt": (dt if self.softplus else dt.abs() / 10).to(device, dtype),
            "A": A.to(**single),
            "B": parts[1].unflatten(-1, (self.ngroups, self.d_state)),
            "C": parts[2].unflatten(-1, (self.ngroups, self.d_state)),
            "chunk_size": self.chunk_size,
            "D": normal(*D_shape).to(**single) if self.skip else None,
            "dt_bias": (normal(self.nheads) * 0.1 + mean * self.softplus).to(**single) if self.bias else None,
            "dt_softplus": self.softplus,
            "dt_limit": self.dt_limit,
            "initial_state": None,
        }
        if self.initial:
            inputs["initial_state"] = normal(nstates, self.nheads, self.headdim, self.d_state).to(**single)
        if self.lengths is not None:
            inputs["cu_seqlens"] = torch.tensor([0, *itertools.accumulate(self.lengths)], device=device)
        return inputs

    def but(self, **changes: Any) -> "Problem":
        """This problem with some fields changed."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        return f"Problem({', '.join(f'{k}={v!r}' for k, v in asdict(self).items())})"


@st.composite
def problems(draw: st.DrawFn, min_seqlen: int = 1, **fixed: Any) -> Problem:
    """Problems of every structure, weighted towards several ragged chunks and groups."""
    ngroups, heads_per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 2)]))
    headdim, d_state = draw(st.sampled_from(SHAPES))
    skip, by_channel = draw(st.sampled_from([(False, False), (True, False), (True, True)]))
    fields = {
        "batch": draw(st.integers(1, 2)),
        "seqlen": draw(st.integers(min_seqlen, MAX_SEQLEN)),
        "nheads": ngroups * heads_per_group,
        "ngroups": ngroups,
        "headdim": headdim,
        "d_state": d_state,
        "chunk_size": draw(st.sampled_from(CHUNK_SIZES)),
        "dt_regime": draw(st.sampled_from(list(DT_REGIMES))),
        "softplus": draw(st.booleans()),
        "skip": skip,
        "bias": draw(st.booleans()),
        "initial": draw(st.booleans()),
        "by_channel": by_channel,
        "strided": draw(st.booleans()),
        "dt_limit": draw(st.sampled_from([(0.0, float("inf")), (0.0, 0.05), (0.01, 0.1)])),
        "seed": draw(st.integers(0, 2**16)),
    }
    return Problem(**{**fields, **fixed})


@st.composite
def packed_problems(draw: st.DrawFn, **fixed: Any) -> Problem:
    """Problems of up to four packed sequences, many of them of no token or one."""
    length = st.one_of(st.sampled_from([0, 1]), st.integers(0, MAX_SEQLEN // 2))
    lengths = tuple(draw(st.lists(length, min_size=1, max_size=4).filter(any)))
    return draw(problems(batch=1, lengths=lengths, **fixed)).but(seqlen=sum(lengths))


def covering(*required: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Fail a `@given(problem=...)` test whose examples did not include every one of the `required` traits."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        inner = test.hypothesis.inner_test  # type: ignore[attr-defined]
        seen: Counter[str] = Counter()

        @functools.wraps(inner)
        def counting(*args: Any, problem: Problem, **kwargs: Any) -> None:
            for trait in problem.traits():
                event(trait)
                seen[trait] += 1
            inner(*args, problem=problem, **kwargs)

        test.hypothesis.inner_test = counting  # type: ignore[attr-defined]

        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            seen.clear()
            test(*args, **kwargs)
            missing = set(required) - set(seen)
            assert not missing, f"no example was {sorted(missing)}; seen: {dict(seen)}"

        run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
        return run

    return decorate


def tokens(inputs: dict[str, Any], part: slice, initial_state: Tensor | None) -> dict[str, Any]:
    """The inputs of some of the tokens, starting from a given state."""
    cut = {name: inputs[name][:, part] for name in ("x", "dt", "B", "C")}
    return {**inputs, **cut, "initial_state": initial_state}


def alone(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The inputs of each of some packed sequences."""
    states = inputs["initial_state"]
    unpacked = {name: value for name, value in inputs.items() if name != "cu_seqlens"}
    for i, (start, stop) in enumerate(itertools.pairwise(inputs["cu_seqlens"].tolist())):
        yield tokens(unpacked, slice(start, stop), None if states is None else states[i : i + 1])
