"""One token of the state space: h ← e^{step · A} h + step · x Bᵀ, y = (h C + D x) · silu(z), the state read once.

Contract: :class:`ssd_kernels.step_interface.SSDStep`. Reference: :func:`ssd_kernels.step.ssd_step`.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.again import again
from ssd_kernels.checks import expect_different_slots
from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.portable.activations import silu, softplus
from ssd_kernels.portable.configs import ssd_step_config
from ssd_kernels.step_interface import check_ssd_step


def ssd_step(
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
    """One token in one Triton kernel; see :class:`ssd_kernels.step_interface.SSDStep`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: on `backward`.
    """

    def run() -> tuple[Tensor]:
        check_ssd_step(state, x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, dt_limit=dt_limit, slots=slots)
        expect_runnable("x", x)
        return (call("ssd_step", state, x, dt, A, B, C, D, z, dt_bias, slots, dt_softplus, *dt_limit),)

    inputs = (state, x, dt, A, B, C, D, z, dt_bias, slots)
    return again("ssd_step", run, inputs, (dt_softplus, dt_limit), indices=slots)[0]


def _ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, slots: Tensor | None, dt_softplus: bool, dt_low: float, dt_high: float,
) -> Tensor:  # fmt: skip
    batch, nheads, headdim = x.shape
    nslots, d_state = state.shape[0], state.shape[3]
    expect_different_slots(slots, nslots)
    y = _fake_ssd_step(state, x)
    if batch == 0:
        return y
    config = ssd_step_config(headdim, d_state)
    vectors = [0 if vector is None else vector.stride(0) for vector in (A, dt_bias, slots)]
    skip = (0, 0) if D is None else (D.stride(0), D.stride(1) if D.ndim == 2 else 0)
    strides = (
        state.stride(), x.stride(), dt.stride(), B.stride(), C.stride(), (0, 0, 0) if z is None else z.stride(),
        (*vectors, *skip),
    )  # fmt: skip
    with device_of(x):
        launch(
            _ssd_step_kernel, (batch * nheads * triton.cdiv(headdim, config.block["BLOCK_P"]),),
            state, x, dt, A, B, C, D, z, dt_bias, slots, y, strides, dt_low, dt_high, nslots, nheads,
            HEADS_PER_GROUP=nheads // B.shape[1], SOFTPLUS=dt_softplus, HEADDIM=headdim, D_STATE=d_state,
            DENSE=state.stride()[2:] == (d_state, 1), **config.kwargs,
        )  # fmt: skip
    return y


def _fake_ssd_step(state: Tensor, x: Tensor, *_: object) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


define(
    "ssd_step(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? dt_bias, Tensor? slots, bool dt_softplus, float dt_low, float dt_high) -> Tensor",
    _ssd_step,
    _fake_ssd_step,
)


@triton.jit(do_not_specialize=["nslots", "nheads"])
def _ssd_step_kernel(
    state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr, slots_ptr, y_ptr, strides,
    dt_low, dt_high, nslots, nheads,
    HEADS_PER_GROUP: tl.constexpr, SOFTPLUS: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr,
    DENSE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P rows of one head's state. Grid: (batch · nheads · tiles,), tiles fastest.

    `strides` are those of state, x, dt, B, C, z, and (A's, dt_bias's, slots', D's two). DENSE: a head's state has no
    gaps.
    """
    TILES: tl.constexpr = (HEADDIM + BLOCK_P - 1) // BLOCK_P
    state_strides = strides[0]
    x_strides = strides[1]
    dt_strides = strides[2]
    B_strides = strides[3]
    C_strides = strides[4]
    z_strides = strides[5]
    vectors = strides[6]
    pid = tl.program_id(0)
    group = (pid // TILES % nheads // HEADS_PER_GROUP).to(tl.int64)
    row = (pid // TILES // nheads).to(tl.int64)
    head = (pid // TILES % nheads).to(tl.int64)
    offs_p = pid % TILES * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_n = tl.arange(0, BLOCK_N)
    in_p = offs_p < HEADDIM
    in_n = offs_n < D_STATE
    in_state = in_p[:, None] & in_n[None, :]
    slot = row
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + row * vectors[2]).to(tl.int64)
        is_slot = (slot >= 0) & (slot < nslots)
        in_state &= is_slot

    state_ptr += slot * state_strides[0] + head * state_strides[1]
    if DENSE:
        state_ptrs = state_ptr + offs_p[:, None] * D_STATE + offs_n[None, :]
    else:
        rows = offs_p.to(tl.int64)[:, None] * state_strides[2]
        state_ptrs = state_ptr + rows + offs_n.to(tl.int64)[None, :] * state_strides[3]
    h = tl.load(state_ptrs, mask=in_state, other=0.0).to(tl.float32)  # (P, N)
    x_ptrs = x_ptr + row * x_strides[0] + head * x_strides[1] + offs_p.to(tl.int64) * x_strides[2]
    x = tl.load(x_ptrs, mask=in_p, other=0.0).to(tl.float32)
    B_ptrs = B_ptr + row * B_strides[0] + group * B_strides[1] + offs_n.to(tl.int64) * B_strides[2]
    B = tl.load(B_ptrs, mask=in_n, other=0.0).to(tl.float32)
    C_ptrs = C_ptr + row * C_strides[0] + group * C_strides[1] + offs_n.to(tl.int64) * C_strides[2]
    C = tl.load(C_ptrs, mask=in_n, other=0.0).to(tl.float32)
    step = tl.load(dt_ptr + row * dt_strides[0] + head * dt_strides[1]).to(tl.float32)
    if dt_bias_ptr is not None:
        step += tl.load(dt_bias_ptr + head * vectors[1]).to(tl.float32)
    if SOFTPLUS:
        step = softplus(step)
    step = tl.where(step < dt_low, dt_low, step)  # comparisons, not minimum and maximum: a NaN stays
    step = tl.where(step > dt_high, dt_high, step)

    decay = tl.exp(step * tl.load(A_ptr + head * vectors[0]).to(tl.float32))
    h = decay * h + (step * x)[:, None] * B[None, :]
    tl.store(state_ptrs, h.to(state_ptr.dtype.element_ty), mask=in_state)
    y = tl.sum(h * C[None, :], axis=1)
    if D_ptr is not None:
        D = tl.load(D_ptr + head * vectors[3] + offs_p.to(tl.int64) * vectors[4], mask=in_p, other=0.0)
        y += D.to(tl.float32) * x
    if z_ptr is not None:
        z_ptrs = z_ptr + row * z_strides[0] + head * z_strides[1] + offs_p.to(tl.int64) * z_strides[2]
        y *= silu(tl.load(z_ptrs, mask=in_p, other=0.0).to(tl.float32))
    if slots_ptr is not None:
        y = tl.where(is_slot, y, float("nan"))
    y_ptrs = y_ptr + (row * nheads + head) * HEADDIM + offs_p
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=in_p)
