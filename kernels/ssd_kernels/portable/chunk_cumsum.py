"""Stage 1, steps and running decays: dt_t = clamp(softplus(dt_t + dt_bias)), a_t = Σ_{s≤t in the chunk} dt_s A.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060). Reference: :func:`ssd_kernels.interface.discretise`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import CHUNK_CUMSUM
from ssd_kernels.portable.plan import CUT, Plan
from ssd_kernels.portable.tiles import chunk_bounds


def chunk_cumsum(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float], plan: Plan,
    table: ChunkTable | None,
) -> Tensor:  # fmt: skip
    """Steps and their running sums, (batch, nchunks, nheads, 3, chunk_size) fp32; of packed sequences by their table.

    The three rows: dt, zero past the end of a chunk; the running sum a rounded to fp32; and what that rounding left.
    """
    sizes = plan.sizes
    steps = torch.empty(
        (sizes.batch, plan.nchunks, sizes.nheads, 3, plan.chunk_size), dtype=torch.float32, device=dt.device
    )
    config = CHUNK_CUMSUM
    head_blocks = triton.cdiv(sizes.nheads, config.block["BLOCK_H"])
    _chunk_cumsum_kernel[(sizes.batch * plan.nchunks * head_blocks,)](
        dt, A, dt_bias, steps,
        (dt.stride(), A.stride(0), 0 if dt_bias is None else dt_bias.stride(0)), *dt_limit,
        None if table is None else table.chunks,
        *plan.cut, sizes.nheads,
        SOFTPLUS=dt_softplus, CHUNK=plan.chunk_size, BLOCK_T=triton.next_power_of_2(plan.chunk_size), **config.kwargs,
    )  # fmt: skip
    return steps


@triton.jit(do_not_specialize=[*CUT, "nheads"])
def _chunk_cumsum_kernel(
    dt_ptr, A_ptr, dt_bias_ptr, steps_ptr, strides, dt_low, dt_high, table_ptr,
    seqlen, period, chunks_per_period, nchunks, nheads,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_H heads of one chunk of one sequence. Grid: (batch · nchunks · head blocks,).

    `strides` are those of dt, A and dt_bias. All in fp64: softplus keeps its relative precision for very negative
    arguments, and the sum its absolute one.
    """
    dt_strides = strides[0]
    pid = tl.program_id(0)
    head_blocks = tl.cdiv(nheads, BLOCK_H)
    row = (pid // head_blocks).to(tl.int64)  # batch · nchunks
    chunk = row % nchunks
    first, stop = chunk_bounds(chunk, table_ptr, seqlen, period, chunks_per_period, CHUNK)
    if table_ptr is not None and first >= stop:
        return
    offs_h = (pid % head_blocks * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
    offs_t = tl.arange(0, BLOCK_T)
    in_h = offs_h < nheads
    in_chunk = in_h[:, None] & (first + offs_t < stop)[None, :]

    dt_ptrs = dt_ptr + row // nchunks * dt_strides[0] + (first + offs_t)[None, :] * dt_strides[1]
    dt = tl.load(dt_ptrs + offs_h[:, None] * dt_strides[2], mask=in_chunk, other=0.0).to(tl.float64)  # (H, T)
    A = tl.load(A_ptr + offs_h * strides[1], mask=in_h, other=0.0).to(tl.float64)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + offs_h * strides[2], mask=in_h, other=0.0).to(tl.float64)[:, None]
    if SOFTPLUS:
        dt = tl.where(dt > 20.0, dt, _log1p(tl.exp(tl.where(dt > 20.0, 0.0, dt))))
    dt = tl.where(dt < dt_low, dt_low, dt)  # comparisons, not minimum and maximum: a NaN stays
    dt = tl.where(dt > dt_high, dt_high, dt)
    dt = tl.where(in_chunk, dt, 0.0)
    dA_cumsum = tl.cumsum(dt * A[:, None], axis=1)

    steps_ptrs = steps_ptr + (row * nheads + offs_h)[:, None] * (3 * CHUNK) + offs_t[None, :]
    in_row = in_h[:, None] & (offs_t < CHUNK)[None, :]
    rounded = dA_cumsum.to(tl.float32)
    tl.store(steps_ptrs, dt.to(tl.float32), mask=in_row)
    tl.store(steps_ptrs + CHUNK, rounded, mask=in_row)
    tl.store(steps_ptrs + 2 * CHUNK, (dA_cumsum - rounded.to(tl.float64)).to(tl.float32), mask=in_row)


@triton.jit
def _log1p(e):
    """log(1 + e) to full relative precision for small e ≥ 0: the rounding of 1 + e is divided out again."""
    u = 1.0 + e
    return tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
