"""The contract of every SSD implementation: its signature, its checks, and how dt becomes a step.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).
"""

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import (
    INDICES,
    expect_device,
    expect_dt_limit,
    expect_dtype,
    expect_ndim,
    expect_same_dtype,
    expect_shape,
    expect_skip,
    expect_tensor,
    sequence_bounds,
)

CARRIES = ("all", "none")
_PLANNED_CARRIES = ("window", "reset", "run_in", "cut")


class SSD(Protocol):
    """A state-space-dual scan. For each head, with step dt_t, and B and C of group h // (nheads // ngroups).

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ        y_t = h_t C_t + D x_t

    Args:
        x: (batch, seqlen, nheads, headdim), the input; any strides.
        dt: (batch, seqlen, nheads), any floating dtype; the step after bias, softplus and clamp, each where asked for.
        A: (nheads,), negative: a state decays by exp(dt · A) at each token.
        B: (batch, seqlen, ngroups, d_state), of the dtype of x.
        C: as B.
        chunk_size: tokens in a chunk; changes the result only where `carry` is not `"all"`.
        D: (nheads,) or (nheads, headdim), the skip connection of each head or channel; none by default.
        dt_bias: (nheads,), added to dt before softplus.
        dt_softplus: apply softplus to dt.
        dt_limit: (low, high), the clamp of the step.
        initial_state: (batch, nheads, headdim, d_state), fp32 (fp64 for fp64 inputs); zero by default. Of packed
            sequences (nseqs, nheads, headdim, d_state).
        cu_seqlens: (nseqs + 1,), int32 or int64, on the device of x: the sequences are packed one after another in the
            one row of a batch of 1, sequence i in tokens cu_seqlens[i] to cu_seqlens[i + 1]. From 0 to seqlen, never
            decreasing: a sequence may be empty. Chunks are counted from each sequence's start. The values are checked
            wherever the host reads them: always on a CPU, unless it is torch.compile that calls. An implementation that
            does not read them on a GPU touches no memory outside the tensors whatever they are, but its results mean
            nothing where they are wrong.
        carry: `"all"`, every chunk starts from the true state; or `"none"`, every chunk but the first starts from zero.
            The first always starts from `initial_state`.
        return_final_state: return the state after the last token too.
        return_chunk_states: return the final state, and the state after each chunk too.

    Returns:
        y, (batch, seqlen, nheads, headdim) in the dtype of x; or (y, final_state), the state of the shape and dtype of
        `initial_state`; or (y, final_state, chunk_states), the last (batch, nchunks, nheads, headdim, d_state) in the
        dtype of the state, for chunks of `chunk_size` tokens. Those of packed sequences follow one another in one row,
        ceil(length / chunk_size) of each; where a sequence has any, its last is its final state.

    A NaN or an infinity in x stays in its sequence, head and channel. An implementation that works on many tokens at
    once may let it reach tokens before it, but none before its chunk.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: legal, but not supported by this implementation.
    """

    def __call__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        chunk_size: int,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        initial_state: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        carry: str = "all",
        return_final_state: bool = False,
        return_chunk_states: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Run the scan."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of one call, read off tensors that have been checked against each other."""

    batch: int
    seqlen: int
    nheads: int
    headdim: int
    ngroups: int
    d_state: int
    nseqs: int | None = None  # of packed sequences

    @classmethod
    def of(cls, x: Tensor, B: Tensor, cu_seqlens: Tensor | None) -> Self:
        """The sizes of a call with these arguments, shaped as :class:`SSD` says."""
        batch, seqlen, nheads, headdim = x.shape
        return cls(
            batch=batch, seqlen=seqlen, nheads=nheads, headdim=headdim, ngroups=B.shape[2], d_state=B.shape[3],
            nseqs=None if cu_seqlens is None else cu_seqlens.shape[0] - 1,
        )  # fmt: skip

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(batch or nseqs, nheads, headdim, d_state)."""
        return (self.batch if self.nseqs is None else self.nseqs, self.nheads, self.headdim, self.d_state)


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of states at the interface: fp32, or fp64 for fp64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def discretise(
    dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float], dtype: torch.dtype
) -> Tensor:
    """The step (…, nheads) in `dtype`: dt plus bias, through softplus, clamped; each where asked for.

    Softplus is the identity above 20, as everywhere in the field.
    """
    step = dt.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    if dt_softplus:
        step = F.softplus(step)
    if dt_limit != (0.0, math.inf) or not dt_softplus:
        step = step.clamp(*dt_limit)
    return step


def results(
    y: Tensor, final_state: Tensor, chunk_states: Tensor, return_final_state: bool, return_chunk_states: bool
) -> Tensor | tuple[Tensor, ...]:
    """What a call returns, of what it was asked for."""
    if return_chunk_states:
        return y, final_state, chunk_states
    return (y, final_state) if return_final_state else y


def check_inputs(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_limit: tuple[float, float],
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    carry: str,
) -> Sizes:
    """Check the arguments of an SSD call against each other; of their elements, only cu_seqlens on a CPU is read.

    Raises:
        ValueError, TypeError, NotImplementedError: as :class:`SSD` says; each names argument, expectation, finding.
    """
    expect_ndim("x", x, "(batch, seqlen, nheads, headdim)")
    expect_ndim("B", B, "(batch, seqlen, ngroups, d_state)")
    batch, seqlen, nheads, headdim = x.shape
    ngroups, d_state = B.shape[2:]
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, x)
    sizes = Sizes.of(x, B, cu_seqlens)
    expect_shape("dt", dt, "(batch, seqlen, nheads)", (batch, seqlen, nheads))
    expect_shape("A", A, "(nheads,)", (nheads,))
    expect_shape("B", B, "(batch, seqlen, ngroups, d_state)", (batch, seqlen, ngroups, d_state))
    expect_shape("C", C, "(batch, seqlen, ngroups, d_state)", (batch, seqlen, ngroups, d_state))
    expect_skip(D, nheads, headdim)
    expect_shape("dt_bias", dt_bias, "(nheads,)", (nheads,), optional=True)
    sequences = "batch" if cu_seqlens is None else "nseqs"
    expect_shape(
        "initial_state", initial_state, f"({sequences}, nheads, headdim, d_state)", sizes.state_shape, optional=True
    )
    if min(nheads, headdim, ngroups, d_state) < 1:
        raise ValueError(f"nheads, headdim, ngroups and d_state must be at least 1, got {sizes}")
    if nheads % ngroups:
        raise ValueError(f"B: ngroups must divide nheads {nheads}, got ngroups {ngroups}")

    expect_dtype("x", x)
    expect_same_dtype("B", B, "x", x)
    expect_same_dtype("C", C, "x", x)
    for name, optional in (("dt", dt), ("A", A), ("D", D), ("dt_bias", dt_bias)):
        if optional is not None and not optional.is_floating_point():
            raise TypeError(f"{name}: dtype must be floating point, got {optional.dtype}")
    if initial_state is not None and initial_state.dtype != state_dtype(x):
        raise TypeError(f"initial_state: dtype must be {state_dtype(x)} for x of {x.dtype}, got {initial_state.dtype}")
    expect_device("x", x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, initial_state=initial_state)

    _check_options(chunk_size, dt_limit, carry)
    return sizes


def _check_cu_seqlens(cu_seqlens: Tensor, x: Tensor) -> None:
    expect_tensor("cu_seqlens", cu_seqlens, optional=True)
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 1:
        raise ValueError(f"cu_seqlens must have shape (nseqs + 1,), got {tuple(cu_seqlens.shape)}")
    if cu_seqlens.numel() == 1 and x.shape[1] > 0:
        raise ValueError(f"cu_seqlens must have shape (nseqs + 1,), nseqs > 0 for {x.shape[1]} tokens, got (1,)")
    if cu_seqlens.dtype not in INDICES:
        raise TypeError(f"cu_seqlens: dtype must be torch.int32 or torch.int64, got {cu_seqlens.dtype}")
    expect_device("x", x, cu_seqlens=cu_seqlens)
    if x.shape[0] != 1:
        raise ValueError(f"x: batch must be 1 where cu_seqlens packs the sequences, got {x.shape[0]}")
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        sequence_bounds(cu_seqlens, x.shape[1])


def _check_options(chunk_size: int, dt_limit: tuple[float, float], carry: str) -> None:
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size must be an int, got {chunk_size!r}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    expect_dt_limit(dt_limit)
    if carry not in CARRIES:
        if carry.split(":")[0] in _PLANNED_CARRIES:
            raise NotImplementedError(f"carry {carry!r} is not supported yet; supported: {CARRIES}")
        raise ValueError(f"carry must be one of {CARRIES}, got {carry!r}")
