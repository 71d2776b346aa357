"""The causal convolution of whole sequences, packed or not: y_t = activation(bias + Σ_k weight[width − 1 − k] x_{t−k}).

Contract: :class:`ssd_kernels.conv_interface.CausalConv1d`. Reference: :func:`ssd_kernels.conv.causal_conv1d`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.again import again
from ssd_kernels.checks import expect_cu_seqlens
from ssd_kernels.conv_interface import check_conv
from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.portable.activations import silu
from ssd_kernels.portable.configs import MAX_CONV_WIDTH, causal_conv1d_config


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

    def run() -> tuple[Tensor, ...]:
        check_conv(x, weight, bias, activation, initial_window, cu_seqlens)
        expect_runnable("x", x)
        expect_width(weight)
        y, final_window = call(
            "causal_conv1d", x, weight, bias, initial_window, cu_seqlens, activation == "silu", return_final_window
        )
        return (y, final_window) if return_final_window else (y,)

    inputs = (x, weight, bias, initial_window, cu_seqlens)
    outputs = again("causal_conv1d", run, inputs, (activation, return_final_window), indices=cu_seqlens)
    return (outputs[0], outputs[1]) if return_final_window else outputs[0]


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
    config = causal_conv1d_config(packed=cu_seqlens is not None)
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
        launch(
            _causal_conv1d_kernel, (units * triton.cdiv(channels, config.block["BLOCK_C"]),),
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
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C channels of BLOCK_T tokens, or of one sequence's final window.

    Grid: ((batch · token_blocks + windows) · channel blocks,), channel blocks fastest. `strides` are those of x, of the
    initial window, and (weight's two, bias's, cu_seqlens').
    """
    pid = tl.program_id(0)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    unit = pid // channel_blocks  # 32 bits wide: a division of 64 costs as much as ten channels
    offs_c = (pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    if unit < token_units:
        _convolve(
            x_ptr, weight_ptr, bias_ptr, window_ptr, cu_ptr, y_ptr, strides, (unit // token_blocks).to(tl.int64),
            (unit % token_blocks).to(tl.int64) * BLOCK_T, offs_c, seqlen, nseqs, search_steps, channels,
            SILU, WIDTH, BLOCK_T, ROWS,
        )  # fmt: skip
    else:
        sequence = (unit - token_units).to(tl.int64)
        _keep_window(x_ptr, window_ptr, cu_ptr, final_ptr, strides, sequence, offs_c, seqlen, channels, WIDTH)


@triton.jit
def _convolve(
    x_ptr, weight_ptr, bias_ptr, window_ptr, cu_ptr, y_ptr, strides, batch, first, offs_c,
    seqlen, nseqs, search_steps, channels,
    SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The outputs of BLOCK_T tokens from `first` on, ROWS at a time, all of whose loads are under way before any use.

    A thread keeps its channels: the inputs that the next tokens need stay in its registers, as `before`, the latest
    first. Where a packed sequence ends among the ROWS, they are worked on one by one.
    """
    x_strides = strides[0]
    in_c = offs_c < channels
    x_ptrs = x_ptr + batch * x_strides[0] + offs_c * x_strides[2]
    y_ptrs = y_ptr + batch * seqlen * channels + offs_c
    taps: tl.tuple = ()  # the token's own first
    for k in tl.static_range(WIDTH):
        weight_ptrs = weight_ptr + offs_c * strides[2][0] + (WIDTH - 1 - k) * strides[2][1]
        taps += (tl.load(weight_ptrs, mask=in_c, other=0.0).to(tl.float32),)
    bias = tl.zeros_like(taps[0])
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_c * strides[2][2], mask=in_c, other=0.0).to(tl.float32)

    sequence, start, stop = _sequence_at(first, batch, cu_ptr, strides[2][3], seqlen, nseqs, search_steps)
    before = _inputs_before(first, x_ptrs, window_ptr, strides, sequence, start, offs_c, in_c, WIDTH)
    for t in range(first, tl.minimum(first + BLOCK_T, seqlen), ROWS):
        rows: tl.tuple = ()
        for i in tl.static_range(ROWS):
            rows += (tl.load(x_ptrs + (t + i) * x_strides[1], mask=in_c & (t + i < seqlen)),)
        is_one_sequence = True
        if cu_ptr is not None:
            is_one_sequence = stop >= tl.minimum(t + ROWS, seqlen)
        if is_one_sequence:
            for i in tl.static_range(ROWS):
                row = rows[i].to(tl.float32)
                y = _weigh(row, before, taps, bias, SILU, WIDTH).to(y_ptr.dtype.element_ty)
                tl.store(y_ptrs + (t + i) * channels, y, mask=in_c & (t + i < seqlen))
                before = (row,) + before[: WIDTH - 2]  # noqa: RUF005 -- Triton knows no star
        else:
            for token in range(t, tl.minimum(t + ROWS, seqlen)):
                if token >= stop:
                    sequence, start, stop = _sequence_at(
                        token, batch, cu_ptr, strides[2][3], seqlen, nseqs, search_steps
                    )  # fmt: skip
                    before = _inputs_before(token, x_ptrs, window_ptr, strides, sequence, start, offs_c, in_c, WIDTH)
                row = tl.load(x_ptrs + token * x_strides[1], mask=in_c).to(tl.float32)
                y = _weigh(row, before, taps, bias, SILU, WIDTH).to(y_ptr.dtype.element_ty)
                tl.store(y_ptrs + token * channels, y, mask=in_c)
                before = (row,) + before[: WIDTH - 2]  # noqa: RUF005


@triton.jit
def _weigh(row, before, taps, bias, SILU: tl.constexpr, WIDTH: tl.constexpr):
    """One token's outputs, fp32."""
    y = bias + row * taps[0]
    for k in tl.static_range(1, WIDTH):
        y += before[k - 1] * taps[k]
    if SILU:
        y = silu(y)
    return y


@triton.jit
def _inputs_before(token, x_ptrs, window_ptr, strides, sequence, start, offs_c, in_c, WIDTH: tl.constexpr):
    """The WIDTH - 1 inputs before a token, fp32, the latest first: before its sequence's start, those of the window."""
    before: tl.tuple = ()
    for k in tl.static_range(1, WIDTH):
        from_t = token - k
        in_x = (from_t >= start) & (from_t >= 0)
        row = tl.load(x_ptrs + from_t * strides[0][1], mask=in_c & in_x, other=0.0).to(tl.float32)
        if window_ptr is not None:
            column = from_t - start + WIDTH - 1
            in_window = in_c & (column >= 0) & (column < WIDTH - 1)
            window_ptrs = window_ptr + sequence * strides[1][0] + offs_c * strides[1][1] + column * strides[1][2]
            row = tl.where(in_x, row, tl.load(window_ptrs, mask=in_window, other=0.0).to(tl.float32))
        before += (row,)
    return before


@triton.jit
def _sequence_at(token, batch, cu_ptr, cu_stride, seqlen, nseqs, search_steps):
    """The sequence of a token, the last that starts at it or before, by bisection; its start, and one past its end."""
    sequence = batch
    start = batch * 0
    stop = start + seqlen
    if cu_ptr is not None:
        sequence = batch * 0
        high = sequence + nseqs
        for _ in range(search_steps):
            middle = (sequence + high) // 2
            reached = tl.load(cu_ptr + middle * cu_stride) <= token
            sequence = tl.where(reached, middle, sequence)
            high = tl.where(reached, high, middle)
        start = tl.load(cu_ptr + sequence * cu_stride).to(tl.int64)
        stop = tl.load(cu_ptr + (sequence + 1) * cu_stride).to(tl.int64)
    return sequence, start, stop


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
