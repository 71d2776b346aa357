"""The contracts of the decode step, of the state space alone and of a whole mixer, and their checks."""

import math
from typing import Protocol

from torch import Tensor

from ssd_kernels.checks import (
    FLOATING,
    expect_device,
    expect_dt_limit,
    expect_dtype,
    expect_ndim,
    expect_same_dtype,
    expect_shape,
    expect_skip,
    expect_slots,
)
from ssd_kernels.conv_interface import check_conv_step_of


class SSDStep(Protocol):
    """One token of the scan :class:`ssd_kernels.interface.SSD`, for each row of a batch and each head.

        step = clamp(softplus(dt + dt_bias))        h ← exp(step · A) h + step · x Bᵀ
        y = h C + D x, or (h C + D x) · silu(z)

    Computed in fp32 (fp64 for fp64 inputs); the state is rounded once, when it is stored, and y is made of the state
    before that. Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).

    Args:
        state: (nslots, nheads, headdim, d_state), fp32, bf16 or fp16 (or fp64), any strides; updated in place.
        x: (batch, nheads, headdim), any strides.
        dt: (batch, nheads), any floating dtype; the step after bias, softplus and clamp, each where asked for.
        A: (nheads,), negative.
        B: (batch, ngroups, d_state), in the dtype of x; head h takes group h // (nheads // ngroups).
        C: as B.
        D: (nheads,) or (nheads, headdim), the skip connection; none by default.
        z: (batch, nheads, headdim), the gate; none by default.
        dt_bias: (nheads,), added to dt before softplus.
        dt_softplus: apply softplus to dt.
        dt_limit: (low, high), the clamp of the step.
        slots: (batch,), int32 or int64, each row's index into `state`, no index twice; row i takes slot i by default.
            Checked on a CPU. On a GPU the host does not read them: a row whose index is out of range touches no slot,
            and its y is NaN.

    Returns:
        y, contiguous (batch, nheads, headdim) in the dtype of x.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: legal, but not supported by this implementation.
    """

    def __call__(
        self,
        state: Tensor,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        slots: Tensor | None = None,
    ) -> Tensor:
        """Take one token."""


class MixerStep(Protocol):
    """One token of a Mamba-2 mixer between its projections: causal convolution, then the step of the state space.

    The gated norm is not in it: where the mixer has one, leave `z` to it.

    Args:
        xBC: (batch, conv_dim), the convolution's input; conv_dim is nheads · headdim + 2 · ngroups · d_state, and tells
            ngroups.
        dt: (batch, nheads).
        z: (batch, nheads · headdim), the gate of y; or None.
        window: (nslots, conv_dim, width - 1), as of :class:`ssd_kernels.conv_interface.CausalConv1dStep`; updated.
        state: (nslots, nheads, headdim, d_state), as of :class:`SSDStep`; updated.
        weight: (conv_dim, width), the convolution's.
        bias: (conv_dim,), the convolution's; or None.
        A: (nheads,), negative.
        activation: the convolution's.
        D: as of :class:`SSDStep`, like dt_bias, dt_softplus and dt_limit.
        slots: (batch,), each row's index into both `window` and `state`.

    Returns:
        y, contiguous (batch, nheads · headdim) in the dtype of xBC.

    Raises:
        ValueError, TypeError, NotImplementedError: as :class:`SSDStep`.
    """

    def __call__(
        self,
        xBC: Tensor,
        dt: Tensor,
        z: Tensor | None,
        window: Tensor,
        state: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        *,
        activation: str | None = "silu",
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        slots: Tensor | None = None,
    ) -> Tensor:
        """Take one token."""


def check_ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_limit: tuple[float, float], slots: Tensor | None,
) -> None:  # fmt: skip
    """Check the arguments of :class:`SSDStep`, but for the values of slots."""
    _check_step("x", "B", state, x, dt, A, B, C, D, z, dt_bias, dt_limit, slots)


def _check_step(
    x_name: str, B_name: str, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, dt_bias: Tensor | None, dt_limit: tuple[float, float], slots: Tensor | None,
) -> None:  # fmt: skip
    """As :func:`check_ssd_step`, of an x and a B that may be parts of what the caller knows by another name."""
    expect_ndim("x", x, "(batch, nheads, headdim)")
    expect_ndim("B", B, "(batch, ngroups, d_state)")
    expect_ndim("state", state, "(nslots, nheads, headdim, d_state)")
    batch, nheads, headdim = x.shape
    ngroups, d_state = B.shape[1:]
    if min(nheads, headdim, ngroups, d_state) < 1:
        raise ValueError(f"x and B must have at least one head and state, got {tuple(x.shape)} and {tuple(B.shape)}")
    if nheads % ngroups:
        raise ValueError(f"{B_name}: ngroups must divide nheads {nheads}, got ngroups {ngroups}")
    state_shape = (state.shape[0], nheads, headdim, d_state)
    expect_shape("state", state, "(nslots, nheads, headdim, d_state)", state_shape)
    expect_shape("dt", dt, "(batch, nheads)", (batch, nheads))
    expect_shape("A", A, "(nheads,)", (nheads,))
    expect_shape("B", B, "(batch, ngroups, d_state)", (batch, ngroups, d_state))
    expect_shape("C", C, "(batch, ngroups, d_state)", (batch, ngroups, d_state))
    expect_skip(D, nheads, headdim)
    expect_shape("z", z, "(batch, nheads, headdim)", (batch, nheads, headdim), optional=True)
    expect_shape("dt_bias", dt_bias, "(nheads,)", (nheads,), optional=True)
    expect_slots(slots, batch, state.shape[0], "state")

    for name, tensor in (("x", x), ("dt", dt), ("A", A), ("D", D), ("z", z), ("dt_bias", dt_bias)):
        expect_dtype(name, tensor)
    expect_same_dtype("B", B, "x", x)
    expect_same_dtype("C", C, "x", x)
    # An fp64 state is for fp64 inputs: with others, no implementation would compute what it can hold.
    expect_dtype("state", state, FLOATING if x.dtype == FLOATING[0] else FLOATING[1:])
    expect_device(x_name, x, state=state, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, slots=slots)
    expect_dt_limit(dt_limit)


def check_mixer_step(
    xBC: Tensor, dt: Tensor, z: Tensor | None, window: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None,
    A: Tensor, *, activation: str | None, D: Tensor | None, dt_bias: Tensor | None, dt_limit: tuple[float, float],
    slots: Tensor | None,
) -> None:  # fmt: skip
    """Check the arguments of :class:`MixerStep`, but for the values of slots."""
    expect_ndim("xBC", xBC, "(batch, conv_dim)")
    expect_ndim("state", state, "(nslots, nheads, headdim, d_state)")
    nslots, nheads, headdim, d_state = state.shape
    d_inner = nheads * headdim
    both = xBC.shape[1] - d_inner
    if d_state < 1 or both < 1 or both % (2 * d_state):
        raise ValueError(
            f"xBC: conv_dim must be nheads · headdim {d_inner} + 2 · ngroups · d_state {d_state}, got {xBC.shape[1]}"
        )
    expect_shape("z", z, "(batch, nheads · headdim)", (xBC.shape[0], d_inner), optional=True)
    expect_ndim("window", window, "(nslots, conv_dim, width - 1)")
    if window.shape[0] != nslots:
        raise ValueError(f"window must have the slots of state, {nslots}, got {window.shape[0]}")
    check_conv_step_of("xBC", xBC, window, weight, bias, activation, slots)
    x, B, C = mixer_parts(xBC, state)
    gate = None if z is None else z.unflatten(-1, (nheads, headdim))
    _check_step("xBC", "xBC", state, x, dt, A, B, C, D, gate, dt_bias, dt_limit, slots)


def mixer_parts(xBC: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The x (batch, nheads, headdim), B and C (batch, ngroups, d_state) in checked xBC; views."""
    _, nheads, headdim, d_state = state.shape
    d_inner = nheads * headdim
    x, B, C = xBC.split([d_inner, (xBC.shape[1] - d_inner) // 2, (xBC.shape[1] - d_inner) // 2], dim=-1)
    return x.unflatten(-1, (nheads, headdim)), B.unflatten(-1, (-1, d_state)), C.unflatten(-1, (-1, d_state))
