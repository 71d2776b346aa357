"""C·B, that all heads of a group share: what a program of :mod:`ssd_kernels.hopper.prepare` makes of B and C."""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from ssd_kernels.hopper.layouts import matrix_layout, span
from ssd_kernels.hopper.slots import slot_bounds


@triton.jit
def store_products(
    batch, slot, group, cut, B_ptr, C_ptr, CB_ptr, tails_ptr, B_strides, C_strides, ngroups,
    D_STATE: tl.constexpr, CHUNK: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """CB of one chunk and group, zero above the diagonal and after the chunk's last token; and its tail.

    `cut`: the arguments of :func:`ssd_kernels.hopper.slots.slot_bounds`. WARPS: 4, or 0 in the interpreter.
    """
    LAYOUT: tl.constexpr = matrix_layout(D_STATE, WARPS)
    first, count, sequence = slot_bounds(slot, *cut, CHUNK)
    nslots = cut[3]
    group = group.to(tl.int64)
    offs_q, offs_n = span(CHUNK, 0, LAYOUT), span(D_STATE, 1, LAYOUT)
    in_q = offs_q < count
    tokens = first + offs_q
    B_ptrs = B_ptr + batch * B_strides[0] + group * B_strides[2] + tokens[:, None] * B_strides[1]
    C_ptrs = C_ptr + batch * C_strides[0] + group * C_strides[2] + tokens[:, None] * C_strides[1]
    B = tl.load(B_ptrs + offs_n[None, :] * B_strides[3], mask=in_q[:, None], other=0.0)  # (Q, N)
    C = tl.load(C_ptrs + offs_n[None, :] * C_strides[3], mask=in_q[:, None], other=0.0)  # (Q, N)
    CB_row = (batch * nslots + slot) * ngroups + group
    _store_lower(CB_ptr + CB_row * (CHUNK * CHUNK), _product(C, B, CHUNK, D_STATE, WARPS), count, CHUNK, WARPS)
    if tails_ptr is not None:
        rows = (sequence.to(tl.int64) * CHUNK + offs_q) * ngroups + group
        partial = (count > 0) & (count < CHUNK) & (offs_q >= 0)
        tl.store(tails_ptr + rows[:, None] * D_STATE + offs_n[None, :], B, mask=partial[:, None])


@triton.jit
def _store_lower(CB_ptr, CB, count, CHUNK: tl.constexpr, WARPS: tl.constexpr):
    LAYOUT: tl.constexpr = matrix_layout(CHUNK, WARPS)
    i, j = span(CHUNK, 0, LAYOUT)[:, None], span(CHUNK, 1, LAYOUT)[None, :]
    tl.store(CB_ptr + i * CHUNK + j, tl.where((i >= j) & (i < count), CB, 0.0))


@triton.jit
def _product(C, B, CHUNK: tl.constexpr, D_STATE: tl.constexpr, WARPS: tl.constexpr):
    """Rows of C by rows of B, in their dtype."""
    if WARPS == 0:
        CB = tl.dot(C, tl.trans(B), input_precision="ieee").to(B.dtype)
    else:
        CB = _product_of_warpgroup(C, B, CHUNK, D_STATE)
    return CB


@gluon.jit
def _product_of_warpgroup(C, B, CHUNK: gl.constexpr, D_STATE: gl.constexpr):
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([CHUNK, D_STATE], B.dtype)
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    B_tile = gl.allocate_shared_memory(B.dtype, [CHUNK, D_STATE], SHARED, B)
    C_tile = gl.allocate_shared_memory(C.dtype, [CHUNK, D_STATE], SHARED, C)
    fence_async_shared()
    CB = gl.full([CHUNK, CHUNK], 0.0, gl.float32, MMA)
    CB = warpgroup_mma(C_tile, B_tile.permute((1, 0)), CB, use_acc=False, is_async=True)
    CB = warpgroup_mma_wait(0, deps=[CB])
    return gl.convert_layout(CB.to(B.dtype), matrix_layout(CHUNK, 4))
