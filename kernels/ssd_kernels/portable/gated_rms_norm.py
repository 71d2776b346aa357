"""The gated RMSNorm: out = weight · u / √(mean(u²) + eps) with u = y · silu(z), over equal parts of a row.

Contract: :class:`ssd_kernels.norm.GatedRMSNorm`. Reference: :func:`ssd_kernels.norm.gated_rms_norm`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.again import again
from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.norm import check_norm
from ssd_kernels.portable.activations import silu
from ssd_kernels.portable.configs import gated_rms_norm_config


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, *, eps: float, groups: int = 1) -> Tensor:
    """The gated norm in one Triton kernel, forward only; see :class:`ssd_kernels.norm.GatedRMSNorm`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: leading dimensions of y and z that do not merge into three; on `backward`.
    """

    def run() -> tuple[Tensor]:
        check_norm(y, z, weight, eps, groups)
        expect_runnable("y", y)
        expect_runnable("z", z)
        return (call("gated_rms_norm", y, z, weight, eps, groups),)

    return again("gated_rms_norm", run, (y, z, weight), (eps, groups))[0]


def expect_three_rows(y: Tensor, z: Tensor) -> list[tuple[int, int, int]]:
    """Expect leading dimensions that merge into three, and return of each the size and its strides in y and z."""
    merged = [(1, 0, 0)] * 3
    for size, y_stride, z_stride in zip(y.shape[:-1], y.stride(), z.stride(), strict=False):
        if size == 1:
            continue
        if merged[-1][1:] == (size * y_stride, size * z_stride):
            merged[-1] = (merged[-1][0] * size, y_stride, z_stride)
        else:
            merged.append((size, y_stride, z_stride))
    if len(merged) > 6:
        raise NotImplementedError(
            "y and z: 'triton' supports leading dimensions that merge into three, got shape "
            f"{tuple(y.shape)}, strides {y.stride()} and {z.stride()}; 'torch' supports any"
        )
    return merged[-3:]


def _gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    out = _fake_gated_rms_norm(y)
    if out.numel() == 0:
        return out
    width = y.shape[-1] // groups
    config = gated_rms_norm_config(width)
    (outer, middle, inner), y_strides, z_strides = zip(*expect_three_rows(y, z), strict=True)
    rows = outer * middle * inner
    with device_of(y):
        launch(
            _gated_rms_norm_kernel, (triton.cdiv(rows, config.block["ROWS"]) * groups,),
            y, z, weight, out, (*y_strides, y.stride(-1)), (*z_strides, z.stride(-1)), weight.stride(0),
            rows, middle, inner, eps,
            MERGED=outer == middle == 1, GROUPS=groups, WIDTH=width, **config.kwargs,
        )  # fmt: skip
    return out


def _fake_gated_rms_norm(y: Tensor, *_: object) -> Tensor:
    return torch.empty(y.shape, dtype=y.dtype, device=y.device)


define(
    "gated_rms_norm(Tensor y, Tensor z, Tensor weight, float eps, int groups) -> Tensor",
    _gated_rms_norm,
    _fake_gated_rms_norm,
)


@triton.jit(do_not_specialize=["rows", "middle", "inner"])
def _gated_rms_norm_kernel(
    y_ptr, z_ptr, weight_ptr, out_ptr, y_strides, z_strides, weight_stride, rows, middle, inner, eps,
    MERGED: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One program: one group of ROWS rows. Grid: (row blocks · GROUPS,), groups fastest.

    The strides of y and z are those of the outer, middle and inner rows and of the elements. MERGED: all rows are inner
    ones.
    """
    pid = tl.program_id(0)
    first = (pid % GROUPS * WIDTH).to(tl.int64)
    y_ptr += first * y_strides[3]
    z_ptr += first * z_strides[3]
    weight_ptr += first * weight_stride
    out_ptr += first
    offs = tl.arange(0, BLOCK)
    first_row = pid // GROUPS * ROWS
    if WIDTH <= BLOCK:
        weight = tl.load(weight_ptr + offs.to(tl.int64) * weight_stride, mask=offs < WIDTH, other=0.0)
        for i in tl.range(0, tl.minimum(rows - first_row, ROWS), num_stages=STAGES):
            row = first_row + i
            outer_row, middle_row, inner_row = _split_row(row, middle, inner, MERGED)
            y_row = y_ptr + outer_row * y_strides[0] + middle_row * y_strides[1] + inner_row * y_strides[2]
            z_row = z_ptr + outer_row * z_strides[0] + middle_row * z_strides[1] + inner_row * z_strides[2]
            gated = _gate(y_row, z_row, y_strides, z_strides, offs, WIDTH)
            normed = gated * tl.rsqrt(tl.sum(gated * gated, axis=0) / WIDTH + eps)
            _store_weighed(normed, weight, out_ptr + row.to(tl.int64) * (GROUPS * WIDTH), offs, WIDTH)
    else:
        for i in range(tl.minimum(rows - first_row, ROWS)):
            row = first_row + i
            outer_row, middle_row, inner_row = _split_row(row, middle, inner, MERGED)
            y_row = y_ptr + outer_row * y_strides[0] + middle_row * y_strides[1] + inner_row * y_strides[2]
            z_row = z_ptr + outer_row * z_strides[0] + middle_row * z_strides[1] + inner_row * z_strides[2]
            squares = tl.zeros((BLOCK,), dtype=tl.float32)
            for start in range(0, WIDTH, BLOCK):
                gated = _gate(y_row, z_row, y_strides, z_strides, start + offs, WIDTH)
                squares += gated * gated
            scale = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + eps)
            for start in range(0, WIDTH, BLOCK):
                gated = _gate(y_row, z_row, y_strides, z_strides, start + offs, WIDTH)
                weight = tl.load(
                    weight_ptr + (start + offs).to(tl.int64) * weight_stride, mask=start + offs < WIDTH, other=0.0
                )
                out_row = out_ptr + row.to(tl.int64) * (GROUPS * WIDTH)
                _store_weighed(gated * scale, weight, out_row, start + offs, WIDTH)


@triton.jit
def _split_row(row, middle, inner, MERGED: tl.constexpr):
    """The outer, middle and inner index of a row, 64 bits wide; divided in 32, which is a quarter of the work."""
    if MERGED:
        outer_row, middle_row, inner_row = row * 0, row * 0, row
    else:
        outer_row, middle_row, inner_row = row // inner // middle, row // inner % middle, row % inner
    return outer_row.to(tl.int64), middle_row.to(tl.int64), inner_row.to(tl.int64)


@triton.jit
def _gate(y_ptr, z_ptr, y_strides, z_strides, offs, WIDTH: tl.constexpr):
    """U = y · silu(z), fp32, zero past the end of the group."""
    offs = offs.to(tl.int64)
    y = tl.load(y_ptr + offs * y_strides[3], mask=offs < WIDTH, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + offs * z_strides[3], mask=offs < WIDTH, other=0.0).to(tl.float32)
    return y * silu(z)


@triton.jit
def _store_weighed(normed, weight, out_ptr, offs, WIDTH: tl.constexpr):
    out = normed * weight.to(tl.float32)
    tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=offs < WIDTH)
