"""Stage 3, the state that a chunk adds: S_c = Σ_j e^{a_last − a_j} dt_j x_j B_jᵀ.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import chunk_state_config, tile_size
from ssd_kernels.portable.plan import CUT, Plan
from ssd_kernels.portable.tiles import chunk_bounds, decay_between, dot


def chunk_state(x: Tensor, B: Tensor, steps: Tensor, plan: Plan, table: ChunkTable | None) -> Tensor:
    """The states added by the chunks, (batch, nstates, nheads, headdim, d_state) fp32.

    nstates is nchunks; or, where no other state is needed, 1, the last chunk's, or nseqs, that of each packed sequence.
    """
    sizes, nstates = plan.sizes, plan.nstates
    states = torch.empty((sizes.batch, nstates, *sizes.state_shape[1:]), dtype=torch.float32, device=x.device)
    config = chunk_state_config(x.dtype, sizes.headdim)
    block_p, block_n = tile_size(sizes.headdim), min(tile_size(sizes.d_state), 128)
    _chunk_state_kernel[(sizes.batch * nstates * sizes.nheads * triton.cdiv(sizes.d_state, block_n),)](
        x, B, steps, states, x.stride(), B.stride(),
        *((None, None) if table is None else (table.chunks, table.sequences if plan.last_only else None)),
        *plan.cut, nstates, sizes.nheads, sizes.ngroups,
        CHUNK=plan.chunk_size, HEADDIM=sizes.headdim, D_STATE=sizes.d_state, BLOCK_P=block_p, BLOCK_N=block_n,
        **config.kwargs,
    )  # fmt: skip
    return states


@triton.jit(do_not_specialize=[*CUT, "nstates", "nheads", "ngroups"])
def _chunk_state_kernel(
    x_ptr, B_ptr, steps_ptr, state_ptr, x_strides, B_strides, table_ptr, sequences_ptr,
    seqlen, period, chunks_per_period, nchunks, nstates, nheads, ngroups,
    CHUNK: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program: a (BLOCK_P, BLOCK_N) tile of one state. Grid: (batch · nstates · nheads · tiles,), tiles fastest.

    `sequences_ptr` is None unless a state stands for a packed sequence, which has that of its last chunk.
    """
    TILES: tl.constexpr = (D_STATE + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    row = (pid // TILES).to(tl.int64)  # (batch · nstates) · nheads
    head = row % nheads
    chunk = nchunks - nstates + row // nheads % nstates
    batch = row // nheads // nstates
    if sequences_ptr is not None:
        chunk = tl.maximum(tl.load(sequences_ptr + 2 * (row // nheads + 1)) - 1, 0)  # of an empty one, any
    group = head // (nheads // ngroups)
    first, stop = chunk_bounds(chunk, table_ptr, seqlen, period, chunks_per_period, CHUNK)
    if table_ptr is not None and first >= stop:
        return
    offs_p = tl.arange(0, BLOCK_P).to(tl.int64)
    offs_n = (pid % TILES * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    x_ptrs = x_ptr + batch * x_strides[0] + head * x_strides[2] + offs_p[:, None] * x_strides[3]
    B_ptrs = B_ptr + batch * B_strides[0] + group * B_strides[2] + offs_n[None, :] * B_strides[3]
    steps_ptr += ((batch * nchunks + chunk) * nheads + head) * (3 * CHUNK)
    high_last = tl.load(steps_ptr + 2 * CHUNK - 1)
    low_last = tl.load(steps_ptr + 3 * CHUNK - 1)

    acc = tl.zeros((BLOCK_P, BLOCK_N), dtype=tl.float32)
    for t in range(0, CHUNK, BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        in_t = first + offs_t < stop
        step = tl.load(steps_ptr + offs_t, mask=in_t, other=0.0)
        high = tl.load(steps_ptr + CHUNK + offs_t, mask=in_t, other=0.0)
        low = tl.load(steps_ptr + 2 * CHUNK + offs_t, mask=in_t, other=0.0)
        weight = step * decay_between(high_last, low_last, high, low, in_t)  # (T,), zero where step is
        in_x = in_t[None, :] & (offs_p < HEADDIM)[:, None]
        in_B = in_t[:, None] & (offs_n < D_STATE)[None, :]
        x = tl.load(x_ptrs + (first + offs_t)[None, :] * x_strides[1], mask=in_x, other=0.0)  # (P, T)
        B = tl.load(B_ptrs + (first + offs_t)[:, None] * B_strides[1], mask=in_B, other=0.0)  # (T, N)
        acc = dot(x.to(tl.float32) * weight[None, :], B, acc, B_ptr.dtype.element_ty)
    state_ptrs = state_ptr + row * (HEADDIM * D_STATE) + offs_p[:, None] * D_STATE + offs_n[None, :]
    tl.store(state_ptrs, acc, mask=(offs_p < HEADDIM)[:, None] & (offs_n < D_STATE)[None, :])
