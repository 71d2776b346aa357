"""The contract of every SSD implementation: its signature, its checks, and how dt becomes a step.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CARRIES = ("all", "none")
_PLANNED_CARRIES = ("window", "reset", "run_in", "cut")
_INPUT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
        D: (nheads,), the skip connection; none by default.
        dt_bias: (nheads,), added to dt before softplus.
        dt_softplus: apply softplus to dt.
        dt_limit: (low, high), the clamp of the step.
        initial_state: (batch, nheads, headdim, d_state), fp32 (fp64 for fp64 inputs); zero by default.
        cu_seqlens: bounds of packed sequences; not supported yet.
        carry: `"all"`, every chunk starts from the true state; or `"none"`, every chunk but the first starts from zero.
            The first always starts from `initial_state`.
        return_final_state: return the state after the last token too.

    Returns:
        y, (batch, seqlen, nheads, headdim) in the dtype of x; or (y, final_state), the state of the shape and dtype of
        `initial_state`.

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
    ) -> Tensor | tuple[Tensor, Tensor]:
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

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(batch, nheads, headdim, d_state)."""
        return (self.batch, self.nheads, self.headdim, self.d_state)


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
    """Check the arguments of an SSD call against each other, without reading any element.

    Raises:
        ValueError, TypeError, NotImplementedError: as :class:`SSD` says; each names argument, expectation, finding.
    """
    _expect_ndim("x", x, "(batch, seqlen, nheads, headdim)")
    _expect_ndim("B", B, "(batch, seqlen, ngroups, d_state)")
    batch, seqlen, nheads, headdim = x.shape
    ngroups, d_state = B.shape[2:]
    sizes = Sizes(batch=batch, seqlen=seqlen, nheads=nheads, headdim=headdim, ngroups=ngroups, d_state=d_state)
    _expect_shape("dt", dt, "(batch, seqlen, nheads)", (batch, seqlen, nheads))
    _expect_shape("A", A, "(nheads,)", (nheads,))
    _expect_shape("B", B, "(batch, seqlen, ngroups, d_state)", (batch, seqlen, ngroups, d_state))
    _expect_shape("C", C, "(batch, seqlen, ngroups, d_state)", (batch, seqlen, ngroups, d_state))
    _expect_shape("D", D, "(nheads,)", (nheads,))
    _expect_shape("dt_bias", dt_bias, "(nheads,)", (nheads,))
    _expect_shape("initial_state", initial_state, "(batch, nheads, headdim, d_state)", sizes.state_shape)
    if min(nheads, headdim, ngroups, d_state) < 1:
        raise ValueError(f"nheads, headdim, ngroups and d_state must be at least 1, got {sizes}")
    if nheads % ngroups:
        raise ValueError(f"B: ngroups must divide nheads {nheads}, got ngroups {ngroups}")

    if x.dtype not in _INPUT_DTYPES:
        raise TypeError(f"x: dtype must be one of {_INPUT_DTYPES}, got {x.dtype}")
    for name, tensor in (("B", B), ("C", C)):
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}: dtype must be that of x, {x.dtype}, got {tensor.dtype}")
    for name, optional in (("dt", dt), ("A", A), ("D", D), ("dt_bias", dt_bias)):
        if optional is not None and not optional.is_floating_point():
            raise TypeError(f"{name}: dtype must be floating point, got {optional.dtype}")
    if initial_state is not None and initial_state.dtype != state_dtype(x):
        raise TypeError(f"initial_state: dtype must be {state_dtype(x)} for x of {x.dtype}, got {initial_state.dtype}")
    for name, optional in (("dt", dt), ("A", A), ("B", B), ("C", C), ("D", D), ("dt_bias", dt_bias)):
        _expect_device(name, optional, x.device)
    _expect_device("initial_state", initial_state, x.device)

    _check_options(chunk_size, dt_limit, cu_seqlens, carry)
    return sizes


def _check_options(chunk_size: int, dt_limit: tuple[float, float], cu_seqlens: Tensor | None, carry: str) -> None:
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size must be an int, got {chunk_size!r}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if len(dt_limit) != 2 or not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"dt_limit must be (low, high) with low at most high, got {dt_limit}")
    if cu_seqlens is not None:
        raise NotImplementedError("cu_seqlens: packed sequences are not supported yet; pass one sequence a batch row")
    if carry not in CARRIES:
        if carry.split(":")[0] in _PLANNED_CARRIES:
            raise NotImplementedError(f"carry {carry!r} is not supported yet; supported: {CARRIES}")
        raise ValueError(f"carry must be one of {CARRIES}, got {carry!r}")


def _expect_ndim(name: str, tensor: Tensor, meaning: str) -> None:
    expected = meaning.count(",") + 1
    if tensor.ndim != expected:
        raise ValueError(f"{name} must have {expected} dimensions {meaning}, got shape {tuple(tensor.shape)}")


def _expect_shape(name: str, tensor: Tensor | None, meaning: str, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {meaning} = {shape}, got {tuple(tensor.shape)}")


def _expect_device(name: str, tensor: Tensor | None, device: torch.device) -> None:
    if tensor is not None and tensor.device != device:
        raise ValueError(f"{name} must be on the device of x, {device}, got {tensor.device}")
