"""The causal convolution in plain torch, block by block: what a CPU runs.

Contract and equation: :mod:`ssd_kernels.conv_interface`.
"""

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import expect_different_slots, sequence_bounds, wants_gradient
from ssd_kernels.conv_interface import check_conv, check_conv_step
from ssd_kernels.inductor import foreseen

# Tokens of all rows worked on at once, so that the fp32 sums of 8448 channels stay in cache: five times as fast as
# torch.nn.functional.conv1d on two cores. A GPU takes all.
_CPU_BLOCK = 32


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
    """The convolution in torch, differentiable; see :class:`ssd_kernels.conv_interface.CausalConv1d`.

    The host reads cu_seqlens: on a GPU it waits for it. torch.compile takes it whole, as the operator
    `ssd_kernels::causal_conv1d_in_blocks`, unless a gradient is wanted: then it unrolls the loop over blocks, for each
    length anew.
    """
    nseqs = check_conv(x, weight, bias, activation, initial_window, cu_seqlens)
    given = (x, weight, bias, initial_window)
    if torch.compiler.is_compiling() and not wants_gradient(given):
        both: tuple[Tensor, Tensor] = _whole(*given, cu_seqlens, activation)
        return both if return_final_window else both[0]
    batch, seqlen, channels = x.shape
    if initial_window is None:
        initial_window = x.new_zeros((nseqs, channels, weight.shape[1] - 1))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_window = torch.empty(initial_window.shape, dtype=x.dtype, device=x.device)
    block = max(1, _CPU_BLOCK // max(1, batch)) if x.device.type == "cpu" else max(1, seqlen)
    packed = cu_seqlens is not None
    bounds = [0, seqlen] if cu_seqlens is None else sequence_bounds(cu_seqlens, seqlen)
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows = slice(i, i + 1) if packed else slice(None)
        window = initial_window[rows].transpose(1, 2)
        for first in range(start, stop, block):
            tokens = slice(first, min(first + block, stop))
            inputs = torch.cat([window, x[:, tokens]], dim=1)
            y[:, tokens] = _weigh(inputs, weight, bias, activation)
            window = inputs[:, tokens.stop - tokens.start :]
        final_window[rows] = window.transpose(1, 2)
    return (y, final_window) if return_final_window else y


def causal_conv1d_step(
    x: Tensor,
    window: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """One token in torch; see :class:`ssd_kernels.conv_interface.CausalConv1dStep`."""
    check_conv_step(x, window, weight, bias, activation, slots)
    expect_different_slots(slots, window.shape[0])
    before = window[: x.shape[0]] if slots is None else window.index_select(0, slots)
    inputs = torch.cat([before, x[:, :, None]], dim=-1)
    y = _weigh(inputs.transpose(1, 2), weight, bias, activation)[:, 0]
    if slots is None:
        before.copy_(inputs[..., 1:])
    else:
        window.index_copy_(0, slots.long(), inputs[..., 1:])
    return y.to(x.dtype).contiguous()


@torch.library.custom_op("ssd_kernels::causal_conv1d_in_blocks", mutates_args=())
def _whole(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_window: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A call with its final window; a graph with the loop over blocks in it would hold for one length only."""
    both = causal_conv1d(
        x, weight, bias, activation=activation, initial_window=initial_window, cu_seqlens=cu_seqlens,
        return_final_window=True,
    )  # fmt: skip
    return cast("tuple[Tensor, Tensor]", both)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_window: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    nseqs = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    window_shape = (nseqs, x.shape[2], weight.shape[1] - 1)
    y, final_window = (torch.empty(shape, dtype=x.dtype, device=x.device) for shape in (x.shape, window_shape))
    return y, final_window


_whole.register_fake(foreseen("causal_conv1d_in_blocks", _fake))


def _weigh(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """The outputs, (batch, t, channels) in fp32 or fp64, of inputs (batch, width - 1 + t, channels)."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    inputs, weight = inputs.to(dtype), weight.to(dtype)
    width = weight.shape[1]
    length = inputs.shape[1] - width + 1
    acc = inputs[:, :length] * weight[:, 0]
    for tap in range(1, width):
        acc = acc.addcmul_(inputs[:, tap : tap + length], weight[:, tap])
    if bias is not None:
        acc = acc.add_(bias.to(dtype))
    return F.silu(acc) if activation == "silu" else acc
