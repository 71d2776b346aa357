"""One token of the causal convolution: y = activation(bias + Σ_j weight[j] window_j + weight[width − 1] x).

Contract: :class:`ssd_kernels.conv_interface.CausalConv1dStep`. Reference: :func:`ssd_kernels.conv.causal_conv1d_step`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.again import again
from ssd_kernels.checks import expect_different_slots
from ssd_kernels.conv_interface import check_conv_step
from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.portable.activations import silu
from ssd_kernels.portable.causal_conv1d import expect_width
from ssd_kernels.portable.configs import causal_conv1d_step_config


def causal_conv1d_step(
    x: Tensor,
    window: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """One token in one Triton kernel; see :class:`ssd_kernels.conv_interface.CausalConv1dStep`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: a width that is not 2, 3 or 4; on `backward`.
    """

    def run() -> tuple[Tensor]:
        check_conv_step(x, window, weight, bias, activation, slots)
        expect_runnable("x", x)
        expect_width(weight)
        return (call("causal_conv1d_step", x, window, weight, bias, slots, activation == "silu"),)

    return again("causal_conv1d_step", run, (x, window, weight, bias, slots), (activation,), indices=slots)[0]


def _causal_conv1d_step(
    x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, slots: Tensor | None, silu: bool
) -> Tensor:
    batch, channels = x.shape
    nslots = window.shape[0]
    expect_different_slots(slots, nslots)
    y = _fake_causal_conv1d_step(x)
    if y.numel() == 0:
        return y
    config = causal_conv1d_step_config()
    strides = (
        x.stride(),
        window.stride(),
        (*weight.stride(), 0 if bias is None else bias.stride(0), 0 if slots is None else slots.stride(0)),
    )
    with device_of(x):
        launch(
            _causal_conv1d_step_kernel, (batch * triton.cdiv(channels, config.block["BLOCK_C"]),),
            x, window, weight, bias, slots, y, strides, nslots, channels,
            SILU=silu, WIDTH=weight.shape[1], **config.kwargs,
        )  # fmt: skip
    return y


def _fake_causal_conv1d_step(x: Tensor, *_: object) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


define(
    "causal_conv1d_step(Tensor x, Tensor(a!) window, Tensor weight, Tensor? bias, Tensor? slots, bool silu) -> Tensor",
    _causal_conv1d_step,
    _fake_causal_conv1d_step,
)


@triton.jit(do_not_specialize=["nslots"])
def _causal_conv1d_step_kernel(
    x_ptr, window_ptr, weight_ptr, bias_ptr, slots_ptr, y_ptr, strides, nslots, channels,
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C channels of one row. Grid: (batch · channel blocks,), channel blocks fastest.

    `strides` are those of x, of the window, and (weight's two, bias's, slots').
    """
    x_strides = strides[0]
    window_strides = strides[1]
    pid = tl.program_id(0)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    row = (pid // channel_blocks).to(tl.int64)
    slot = row
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + row * strides[2][3]).to(tl.int64)
    is_slot = (slot >= 0) & (slot < nslots)
    offs_c = (pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    in_c = offs_c < channels
    in_window = in_c & is_slot
    window_ptrs = window_ptr + slot * window_strides[0] + offs_c * window_strides[1]
    weight_ptrs = weight_ptr + offs_c * strides[2][0]

    x = tl.load(x_ptr + row * x_strides[0] + offs_c * x_strides[1], mask=in_c, other=0.0)  # (C,)
    weight = tl.load(weight_ptrs + (WIDTH - 1) * strides[2][1], mask=in_c, other=0.0).to(tl.float32)
    acc = x.to(tl.float32) * weight
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_c * strides[2][2], mask=in_c, other=0.0).to(tl.float32)
    for j in tl.static_range(WIDTH - 1):
        weight = tl.load(weight_ptrs + j * strides[2][1], mask=in_c, other=0.0).to(tl.float32)
        before = tl.load(window_ptrs + j * window_strides[2], mask=in_window, other=0.0)
        acc += before.to(tl.float32) * weight
        if j > 0:
            tl.store(window_ptrs + (j - 1) * window_strides[2], before, mask=in_window)
    tl.store(window_ptrs + (WIDTH - 2) * window_strides[2], x, mask=in_window)
    if SILU:
        acc = silu(acc)
    acc = tl.where(is_slot, acc, float("nan"))
    tl.store(y_ptr + row * channels + offs_c, acc.to(y_ptr.dtype.element_ty), mask=in_c)
