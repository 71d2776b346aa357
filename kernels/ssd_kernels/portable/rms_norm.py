"""RMSNorm: out = weight · x / √(mean(x²) + eps). Contract, reference: :mod:`ssd_kernels.mlp_interface`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.mlp_interface import check_rms_norm
from ssd_kernels.portable.configs import rms_norm_config

WIDEST = 65536  # elements of a row, all held at once


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """The norm in one Triton kernel, forward only; see :class:`ssd_kernels.mlp_interface.RMSNorm`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: rows wider than 65536, or whose leading dimensions do not merge into one; on `backward`.
    """
    check_rms_norm(x, weight, eps)
    expect_runnable("x", x)
    if x.shape[-1] > WIDEST:
        raise NotImplementedError(
            f"x: width must be at most {WIDEST} for 'triton', got {x.shape[-1]}; 'torch' takes any"
        )
    out: Tensor = call("rms_norm", rows_of("x", x), weight, eps)
    return out.view(x.shape)


def rows_of(name: str, x: Tensor) -> Tensor:
    """A view of (rows, width).

    Raises:
        NotImplementedError: leading dimensions that do not merge.
    """
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError as error:
        raise NotImplementedError(
            f"{name}: leading dimensions must merge into one for 'triton', got shape {tuple(x.shape)}, strides "
            f"{x.stride()}; 'torch' supports any"
        ) from error


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = _fake_rms_norm(x)
    if out.numel() == 0:
        return out
    rows, width = x.shape
    with device_of(x):
        launch(
            _rms_norm_kernel, (rows,), x, weight, out, x.stride(), weight.stride(0), eps,
            WIDTH=width, **rms_norm_config(width).kwargs,
        )  # fmt: skip
    return out


def _fake_rms_norm(x: Tensor, *_: object) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


define("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", _rms_norm, _fake_rms_norm)


@triton.jit(do_not_specialize=["eps"])
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, strides, weight_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program: one row. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    in_row = offs < WIDTH
    wide = offs.to(tl.int64)
    x = tl.load(x_ptr + row * strides[0] + wide * strides[1], mask=in_row, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + wide * weight_stride, mask=in_row, other=0.0).to(tl.float32)
    out = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps) * weight
    tl.store(out_ptr + row * WIDTH + offs, out.to(out_ptr.dtype.element_ty), mask=in_row)
