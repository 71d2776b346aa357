"""What the scan reads of every chunk: steps with their decays, per head, and products C·B, per group. One launch.

Reference: :mod:`ssd_kernels.portable.chunk_cumsum` and :mod:`ssd_kernels.portable.bmm_chunk`, which say what is made.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from ssd_kernels.device import starts_early
from ssd_kernels.launching import launch
from ssd_kernels.portable.bmm_chunk import bmm_chunk
from ssd_kernels.portable.chunk_cumsum import FACTORS, VECTORS, chunk_cumsum
from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import prepare_config, tile_size
from ssd_kernels.portable.plan import CUT, Plan
from ssd_kernels.portable.tiles import chunk_bounds


class Prepared(NamedTuple):
    """Of every chunk of the kernels', T tokens each, zero past their end.

    vectors: (batch · nchunks, nheads, VECTORS, T) fp32; factors: (batch · nchunks + 1, nheads, FACTORS) fp32, the last
        for a look ahead; what they hold, and where, says :mod:`ssd_kernels.portable.chunk_cumsum`.
    CB: (batch · nchunks, ngroups, T, T), bf16 for bf16 inputs, else fp32: in fp16 a product may overflow.
    """

    vectors: Tensor
    factors: Tensor
    CB: Tensor


def prepare(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor | None, dt_softplus: bool,
    dt_limit: tuple[float, float], plan: Plan, table: ChunkTable | None,
) -> Prepared:  # fmt: skip
    """What is needed of all chunks; arguments as :class:`ssd_kernels.interface.SSD` has them."""
    sizes, tile = plan.sizes, tile_size(plan.chunk_size)
    chunks = sizes.batch * plan.nchunks
    prepared = Prepared(
        vectors=torch.empty((chunks, sizes.nheads, VECTORS.value, tile), dtype=torch.float32, device=dt.device),
        factors=torch.empty((chunks + 1, sizes.nheads, FACTORS.value), dtype=torch.float32, device=dt.device),
        CB=torch.empty(
            (chunks, sizes.ngroups, tile, tile),
            dtype=torch.bfloat16 if B.dtype == torch.bfloat16 else torch.float32, device=dt.device,
        ),
    )  # fmt: skip
    config = prepare_config(B.dtype, sizes.d_state)
    head_blocks = triton.cdiv(sizes.nheads, config.block["BLOCK_H"])
    nproducts = chunks * sizes.ngroups
    signed = dt_limit[0] < 0 and not (dt_softplus and dt_limit[1] >= 0)
    strides = (dt.stride(), A.stride(0), 0 if dt_bias is None else dt_bias.stride(0), B.stride(), C.stride())
    launch(
        _prepare_kernel, (nproducts + chunks * head_blocks,),
        dt, A, dt_bias, B, C, *prepared, strides, *dt_limit, None if table is None else table.chunks,
        *plan.cut, sizes.nheads, sizes.ngroups, nproducts, dt.stride(2),
        SOFTPLUS=dt_softplus, SIGNED=signed, CHUNK=plan.chunk_size, D_STATE=sizes.d_state, BLOCK_T=tile,
        EARLY_START=starts_early(dt.device), **config.kwargs,
    )  # fmt: skip
    return prepared


@triton.jit(do_not_specialize=[*CUT, "nheads", "ngroups", "nproducts", "dt_head_stride"])
def _prepare_kernel(
    dt_ptr, A_ptr, dt_bias_ptr, B_ptr, C_ptr, vectors_ptr, factors_ptr, CB_ptr, strides, dt_low, dt_high, table_ptr,
    seqlen, period, chunks_per_period, nchunks, nheads, ngroups, nproducts, dt_head_stride,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, CHUNK: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_T: tl.constexpr, EARLY_START: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: CB of one chunk and group, or BLOCK_H heads of one chunk.

    Grid: (batch · nchunks · ngroups + batch · nchunks · head blocks,). `strides` are those of dt, A, dt_bias, B and C.
    That of dt's heads is not specialised: of one that is 1, the compiler would make a tile that is laid out by heads,
    and then work out most of what is made of it twice, in that layout and in the one in which it is stored.
    EARLY_START: a walk that is launched so may begin, and waits for what is made here where it needs it.
    """
    if EARLY_START:
        gdc_launch_dependents()
    dt_strides, B_strides, C_strides = strides[0], strides[3], strides[4]
    pid = tl.program_id(0)
    is_product = pid < nproducts
    head_blocks = tl.cdiv(nheads, BLOCK_H)
    parts = tl.where(is_product, ngroups, head_blocks)  # of a chunk
    part_of_all = tl.where(is_product, pid, pid - nproducts)
    part, row = part_of_all % parts, part_of_all // parts  # of batch · nchunks rows
    first, stop = chunk_bounds(row % nchunks, table_ptr, seqlen, period, chunks_per_period, CHUNK)
    batch, part, row, first = (row // nchunks).to(tl.int64), part.to(tl.int64), row.to(tl.int64), first.to(tl.int64)
    if table_ptr is not None and first >= stop:
        return
    offs_t = first + tl.arange(0, BLOCK_T)
    in_chunk = offs_t < stop
    if is_product:
        C_ptrs = C_ptr + batch * C_strides[0] + part * C_strides[2] + offs_t * C_strides[1]
        B_ptrs = B_ptr + batch * B_strides[0] + part * B_strides[2] + offs_t * B_strides[1]
        CB_ptr += (row * ngroups + part) * (BLOCK_T * BLOCK_T)
        bmm_chunk(C_ptrs, B_ptrs, CB_ptr, in_chunk, C_strides[3], B_strides[3], D_STATE, BLOCK_T, BLOCK_N)
    else:
        offs_h = part * BLOCK_H + tl.arange(0, BLOCK_H)
        in_h = offs_h < nheads
        dt_ptrs = dt_ptr + batch * dt_strides[0] + offs_t[:, None] * dt_strides[1] + offs_h[None, :] * dt_head_stride
        dt_bias_ptrs = None
        if dt_bias_ptr is not None:
            dt_bias_ptrs = dt_bias_ptr + offs_h * strides[2]
        chunk_cumsum(
            dt_ptrs, A_ptr + offs_h * strides[1], dt_bias_ptrs,
            vectors_ptr + row * nheads * (VECTORS * BLOCK_T), factors_ptr + row * nheads * FACTORS,
            offs_h, in_h, in_chunk[:, None] & in_h[None, :],
            (stop - first < BLOCK_T) | (period % CHUNK != 0), dt_low, dt_high, SOFTPLUS, SIGNED, BLOCK_T,
        )  # fmt: skip
