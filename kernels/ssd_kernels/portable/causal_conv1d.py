"""The causal convolution of whole sequences, packed or not: y_t = activation(bias + Σ_k weight[width − 1 − k] x_{t−k}).

Contract: :class:`ssd_kernels.conv_interface.CausalConv1d`. Reference: :func:`ssd_kernels.conv.causal_conv1d`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.checks import expect_cu_seqlens
from ssd_kernels.conv_interface import check_conv
from ssd_kernels.portable.activations import silu
from ssd_kernels.portable.configs import MAX_CONV_WIDTH, causal_conv1d_config
from ssd_kernels.portable.library import define, device_of, expect_runnable


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_window: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    return_final_window: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The convolution in one Triton kernel, forward only; see :class:`ssd_kernels.conv_interface.CausalConv1d`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: a width that is not 2, 3 or 4; on `backward`.
    """
    check_conv(x, weight, bias, activation, initial_window, cu_seqlens)
    expect_runnable("x", x)
    expect_width(weight)
    y, final_window = torch.ops.ssd_kernels.causal_conv1d(
        x, weight, bias, initial_window, cu_seqlens, activation == "silu", return_final_window
    )
    return (y, final_window) if return_final_window else y


def expect_width(weight: Tensor) -> None:
    """Expect a width that the kernels are compiled and tested for."""
    if not 2 <= weight.shape[1] <= MAX_CONV_WIDTH:
        raise NotImplementedError(
            f"weight: 'triton' supports widths 2 to {MAX_CONV_WIDTH}, got {weight.shape[1]}; 'torch' supports any"
        )


def _causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_window: Tensor | None, cu_seqlens: Tensor | None,
    silu: bool, with_window: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # Checked here as well: of a compiled call, this is where the values of cu_seqlens can be read.
    nseqs = x.shape[0] if cu_seqlens is None else expect_cu_seqlens(cu_seqlens, x)
    y, final_window = _fake_causal_conv1d(x, weight, bias, initial_window, cu_seqlens, silu, with_window)
    batch, seqlen, channels = x.shape
    config = causal_conv1d_config()
    token_blocks = triton.cdiv(seqlen, config.block["BLOCK_T"])
    units = batch * token_blocks + final_window.shape[0]
    if units * channels == 0:
        return y, final_window
    strides = (
        x.stride(),
        (0, 0, 0) if initial_window is None else initial_window.stride(),
        (*weight.stride(), 0 if bias is None else bias.stride(0), 0 if cu_seqlens is None else cu_seqlens.stride(0)),
    )
    with device_of(x):
        _causal_conv1d_kernel[(units * triton.cdiv(channels, config.block["BLOCK_C"]),)](
            x, weight, bias, initial_window, cu_seqlens, y, final_window, strides,
            seqlen, token_blocks, batch * token_blocks, nseqs, max(nseqs - 1, 0).bit_length(), channels,
            SILU=silu, WIDTH=weight.shape[1], **config.kwargs,
        )  # fmt: skip
    return y, final_window


def _fake_causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_window: Tensor | None, cu_seqlens: Tensor | None,
    silu: bool, with_window: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    nseqs = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    window_shape = (nseqs if with_window else 0, x.shape[2], weight.shape[1] - 1)
    y, final_window = (torch.empty(shape, dtype=x.dtype, device=x.device) for shape in (x.shape, window_shape))
    return y, final_window


define(
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor? initial_window, Tensor? cu_seqlens, bool silu, "
    "bool with_window) -> (Tensor, Tensor)",
    _causal_conv1d,
    _fake_causal_conv1d,
)


@triton.jit(do_not_specialize=["seqlen", "token_blocks", "token_units", "nseqs", "search_steps"])
def _causal_conv1d_kernel(
    x_ptr, weight_ptr, bias_ptr, window_ptr, cu_ptr, y_ptr, final_ptr, strides,
    seqlen, token_blocks, token_units, nseqs, search_steps, channels,
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C channels of BLOCK_T tokens, or of one sequence's final window.

    Grid: ((batch · token_blocks + windows) · channel blocks,), channel blocks fastest. `strides` are those of x, of the
    initial window, and (weight's two, bias's, cu_seqlens').
    """
    pid = tl.program_id(0)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    unit = (pid // channel_blocks).to(tl.int64)
    offs_c = (pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    if unit < token_units:
        _convolve(
            x_ptr, weight_ptr, bias_ptr, window_ptr, cu_ptr, y_ptr, strides, unit // token_blocks,
            unit % token_blocks * BLOCK_T, offs_c, seqlen, nseqs, search_steps, channels, SILU, WIDTH, BLOCK_T,
        )  # fmt: skip
    else:
        _keep_window(x_ptr, window_ptr, cu_ptr, final_ptr, strides, unit - token_units, offs_c, seqlen, channels, WIDTH)


@triton.jit
def _convolve(
    x_ptr, weight_ptr, bias_ptr, window_ptr, cu_ptr, y_ptr, strides, batch, first, offs_c,
    seqlen, nseqs, search_steps, channels, SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The outputs of BLOCK_T tokens from `first` on. A row is read from memory once, by the other taps from L1."""
    x_strides = strides[0]
    window_strides = strides[1]
    offs_t = first + tl.arange(0, BLOCK_T)
    in_t = offs_t < seqlen
    in_c = offs_c < channels
    if cu_ptr is None:
        sequence = tl.zeros((BLOCK_T,), dtype=tl.int64) + batch
        start = tl.zeros((BLOCK_T,), dtype=tl.int64)
    else:
        sequence, start = _sequences_of(offs_t, cu_ptr, strides[2][3], nseqs, search_steps, BLOCK_T)
    x_ptrs = x_ptr + batch * x_strides[0] + offs_c[None, :] * x_strides[2]
    weight_ptrs = weight_ptr + offs_c * strides[2][0]

    acc = tl.zeros((BLOCK_T, offs_c.shape[0]), dtype=tl.float32)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_c * strides[2][2], mask=in_c, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(WIDTH):
        weight = tl.load(weight_ptrs + (WIDTH - 1 - k) * strides[2][1], mask=in_c, other=0.0).to(tl.float32)
        from_t = offs_t - k
        in_x = (in_t & (from_t >= 0))[:, None] & in_c[None, :]
        x = tl.load(x_ptrs + from_t[:, None] * x_strides[1], mask=in_x, other=0.0).to(tl.float32)  # (T, C)
        if cu_ptr is not None:
            # Chosen after the load, which so does not wait for the search.
            x = tl.where((from_t >= start)[:, None], x, 0.0)
        acc += x * weight[None, :]
    if window_ptr is not None:  # noqa: SIM102 -- the outer one is decided when the kernel is compiled
        # Few blocks hold a token this near to its sequence's start.
        if tl.max((offs_t - start < WIDTH - 1).to(tl.int32), axis=0) > 0:
            window_ptrs = window_ptr + sequence[:, None] * window_strides[0] + offs_c[None, :] * window_strides[1]
            for k in tl.static_range(1, WIDTH):
                weight = tl.load(weight_ptrs + (WIDTH - 1 - k) * strides[2][1], mask=in_c, other=0.0).to(tl.float32)
                column = offs_t - k - start + WIDTH - 1
                in_window = (in_t & (column >= 0) & (column < WIDTH - 1))[:, None] & in_c[None, :]
                before = tl.load(window_ptrs + column[:, None] * window_strides[2], mask=in_window, other=0.0)
                acc += tl.where(in_window, before.to(tl.float32) * weight[None, :], 0.0)
    if SILU:
        acc = silu(acc)
    y_ptrs = y_ptr + (batch * seqlen + offs_t)[:, None] * channels + offs_c[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=in_t[:, None] & in_c[None, :])


@triton.jit
def _keep_window(
    x_ptr, window_ptr, cu_ptr, final_ptr, strides, sequence, offs_c, seqlen, channels, WIDTH: tl.constexpr
):
    """The last WIDTH - 1 inputs of a sequence, those of its initial window included where it is shorter."""
    x_strides = strides[0]
    window_strides = strides[1]
    row = sequence
    start = sequence * 0
    stop = start + seqlen
    if cu_ptr is not None:
        row = sequence * 0
        cu_ptrs = cu_ptr + sequence * strides[2][3]
        # Clamped, for bounds that nobody checked.
        stop = tl.minimum(tl.maximum(tl.load(cu_ptrs + strides[2][3]).to(tl.int64), 0), seqlen)
        start = tl.minimum(tl.maximum(tl.load(cu_ptrs).to(tl.int64), 0), stop)
    offs_w = tl.arange(0, 4)  # width - 1 is 3 at most
    from_t = stop - (WIDTH - 1) + offs_w
    in_tile = (offs_c < channels)[:, None] & (offs_w < WIDTH - 1)[None, :]
    x_ptrs = x_ptr + row * x_strides[0] + offs_c[:, None] * x_strides[2] + from_t[None, :] * x_strides[1]
    kept = tl.load(x_ptrs, mask=in_tile & (from_t >= start)[None, :], other=0.0)  # (C, W)
    if window_ptr is not None:
        window_ptrs = window_ptr + sequence * window_strides[0] + offs_c[:, None] * window_strides[1]
        window_ptrs += (from_t - start + WIDTH - 1)[None, :] * window_strides[2]
        before = tl.load(window_ptrs, mask=in_tile & (from_t < start)[None, :], other=0.0)
        kept = tl.where((from_t >= start)[None, :], kept, before)
    final_ptrs = final_ptr + (sequence * channels + offs_c)[:, None] * (WIDTH - 1) + offs_w[None, :]
    tl.store(final_ptrs, kept, mask=in_tile)


@triton.jit
def _sequences_of(offs_t, cu_ptr, cu_stride, nseqs, search_steps, BLOCK_T: tl.constexpr):
    """The sequence of each token, the last that starts at it or before, by bisection; and that sequence's start."""
    low = tl.zeros((BLOCK_T,), dtype=tl.int64)
    high = low + nseqs
    for _ in range(search_steps):
        middle = (low + high) // 2
        reached = tl.load(cu_ptr + middle * cu_stride) <= offs_t
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low, tl.load(cu_ptr + low * cu_stride).to(tl.int64)
