"""The gate of an MLP: out = silu(gate) · up. Contract, reference: :mod:`ssd_kernels.mlp_interface`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.mlp_interface import check_swiglu
from ssd_kernels.portable.activations import silu
from ssd_kernels.portable.configs import SWIGLU
from ssd_kernels.portable.rms_norm import rows_of


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The gate in one Triton kernel, forward only; see :class:`ssd_kernels.mlp_interface.SwiGLU`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: leading dimensions that do not merge into one; on `backward`.
    """
    check_swiglu(gate, up)
    expect_runnable("gate", gate)
    if gate.numel() == 0:
        return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    out: Tensor = call("swiglu", rows_of("gate", gate), rows_of("up", up))
    return out.view(gate.shape)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    out = _fake_swiglu(gate, up)
    rows, width = gate.shape
    with device_of(gate):
        launch(
            _swiglu_kernel, (rows * triton.cdiv(width, SWIGLU.block["BLOCK"]),),
            gate, up, out, gate.stride(), up.stride(), out.stride(0), width, **SWIGLU.kwargs,
        )  # fmt: skip
    return out


def _fake_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


define("swiglu(Tensor gate, Tensor up) -> Tensor", _swiglu, _fake_swiglu)


@triton.jit(do_not_specialize=["width"])
def _swiglu_kernel(gate_ptr, up_ptr, out_ptr, gate_strides, up_strides, out_stride, width, BLOCK: tl.constexpr):
    """One program: BLOCK elements of a row. Grid: (rows · blocks of a row,), blocks fastest."""
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    offs = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    in_row = offs < width
    wide = offs.to(tl.int64)
    gate = tl.load(gate_ptr + row * gate_strides[0] + wide * gate_strides[1], mask=in_row, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_strides[0] + wide * up_strides[1], mask=in_row, other=0.0).to(tl.float32)
    out = silu(gate) * up
    tl.store(out_ptr + row * out_stride + offs, out.to(out_ptr.dtype.element_ty), mask=in_row)
