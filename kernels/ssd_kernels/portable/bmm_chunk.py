"""Stage 2, products of C and B inside a chunk: CB_ij = C_i · B_j for j ≤ i.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: `C @ B.mT`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import bmm_chunk_config, tile_size
from ssd_kernels.portable.plan import CUT, Plan
from ssd_kernels.portable.tiles import chunk_bounds, dot


def bmm_chunk(B: Tensor, C: Tensor, plan: Plan, table: ChunkTable | None) -> Tensor:
    """CB, (batch, nchunks, ngroups, chunk_size, chunk_size) fp32; tiles wholly above the diagonal are not written."""
    sizes = plan.sizes
    shape = (sizes.batch, plan.nchunks, sizes.ngroups, plan.chunk_size, plan.chunk_size)
    CB = torch.empty(shape, dtype=torch.float32, device=B.device)
    config = bmm_chunk_config(B.dtype, plan.chunk_size)
    tiles = triton.cdiv(plan.chunk_size, config.block["BLOCK_T"]) ** 2
    _bmm_chunk_kernel[(sizes.batch * plan.nchunks * sizes.ngroups * tiles,)](
        B, C, CB, B.stride(), C.stride(), None if table is None else table.chunks, *plan.cut, sizes.ngroups,
        CHUNK=plan.chunk_size, D_STATE=sizes.d_state, BLOCK_N=min(tile_size(sizes.d_state), 64), **config.kwargs,
    )  # fmt: skip
    return CB


@triton.jit(do_not_specialize=[*CUT, "ngroups"])
def _bmm_chunk_kernel(
    B_ptr, C_ptr, CB_ptr, B_strides, C_strides, table_ptr, seqlen, period, chunks_per_period, nchunks, ngroups,
    CHUNK: tl.constexpr, D_STATE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: one (BLOCK_T, BLOCK_T) tile of CB. Grid: (batch · nchunks · ngroups · tiles,), tiles fastest."""
    SIDE: tl.constexpr = (CHUNK + BLOCK_T - 1) // BLOCK_T
    pid = tl.program_id(0)
    tile = pid % (SIDE * SIDE)
    row = (pid // (SIDE * SIDE)).to(tl.int64)  # (batch · nchunks) · ngroups
    group = row % ngroups
    chunk = row // ngroups % nchunks
    batch = row // ngroups // nchunks
    if tile // SIDE < tile % SIDE:
        return
    first, stop = chunk_bounds(chunk, table_ptr, seqlen, period, chunks_per_period, CHUNK)
    if table_ptr is not None and first >= stop:
        return
    offs_i = tile // SIDE * BLOCK_T + tl.arange(0, BLOCK_T)
    offs_j = tile % SIDE * BLOCK_T + tl.arange(0, BLOCK_T)
    C_ptrs = C_ptr + batch * C_strides[0] + (first + offs_i)[:, None] * C_strides[1] + group * C_strides[2]
    B_ptrs = B_ptr + batch * B_strides[0] + (first + offs_j)[None, :] * B_strides[1] + group * B_strides[2]
    acc = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
    for n in tl.static_range(0, D_STATE, BLOCK_N):
        offs_n = (n + tl.arange(0, BLOCK_N)).to(tl.int64)
        in_i = (first + offs_i < stop)[:, None] & (offs_n < D_STATE)[None, :]
        in_j = (first + offs_j < stop)[None, :] & (offs_n < D_STATE)[:, None]
        C = tl.load(C_ptrs + offs_n[None, :] * C_strides[3], mask=in_i, other=0.0)  # (T, N)
        B = tl.load(B_ptrs + offs_n[:, None] * B_strides[3], mask=in_j, other=0.0)  # (N, T)
        acc = dot(C, B, acc, B_ptr.dtype.element_ty)
    CB_ptrs = CB_ptr + row * (CHUNK * CHUNK) + offs_i[:, None] * CHUNK + offs_j[None, :]
    tl.store(CB_ptrs, acc, mask=(offs_i < CHUNK)[:, None] & (offs_j < CHUNK)[None, :])
