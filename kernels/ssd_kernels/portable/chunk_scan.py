"""Stage 5, the outputs of a chunk: y_i = e^{a_i} h C_i + Σ_{j≤i} CB_ij e^{a_i − a_j} dt_j x_j + D x_i.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import chunk_scan_config, tile_size
from ssd_kernels.portable.plan import CUT, Plan
from ssd_kernels.portable.tiles import chunk_bounds, decay_between, dot


def chunk_scan(
    x: Tensor, C: Tensor, D: Tensor | None, steps: Tensor, CB: Tensor, entering: Tensor | None, plan: Plan,
    table: ChunkTable | None,
) -> Tensor:  # fmt: skip
    """y, (batch, seqlen, nheads, headdim) contiguous, of the dtype of x.

    Args:
        x: (batch, seqlen, nheads, headdim), any strides.
        C: (batch, seqlen, ngroups, d_state), any strides.
        D: (nheads,) or (nheads, headdim), any strides; or None.
        steps: (batch, nchunks, nheads, 3, chunk_size) fp32, from stage 1.
        CB: (batch, nchunks, ngroups, chunk_size, chunk_size) fp32, from stage 2.
        entering: (batch, nchunks, nheads, headdim, d_state) fp32, any strides: the states entering every chunk; or of
            independent chunks (batch or nseqs, 1, nheads, headdim, d_state), those entering the first. The others start
            from zero, as all do where it is None.
        plan: how the call is cut.
        table: where packed sequences are cut.
    """
    sizes = plan.sizes
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    config = chunk_scan_config(x.dtype, plan.chunk_size, sizes.headdim, sizes.d_state, table is not None)
    tiles = triton.cdiv(plan.chunk_size, config.block["BLOCK_T"])
    entering_strides = (0,) * 5 if entering is None else entering.stride()
    strides = (x.stride(), C.stride(), (0,) if D is None else D.stride(), entering_strides)
    _chunk_scan_kernel[(sizes.batch * plan.nchunks * sizes.nheads * tiles,)](
        x, C, D, steps, CB, entering, y,
        strides, None if table is None else table.chunks, *plan.cut, sizes.nheads, sizes.ngroups,
        FIRST_ONLY=plan.independent,
        CHUNK=plan.chunk_size, HEADDIM=sizes.headdim, D_STATE=sizes.d_state,
        BLOCK_P=tile_size(sizes.headdim), **config.kwargs,
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=[*CUT, "nheads", "ngroups"])
def _chunk_scan_kernel(
    x_ptr, C_ptr, D_ptr, steps_ptr, CB_ptr, entering_ptr, y_ptr, strides,
    table_ptr, seqlen, period, chunks_per_period, nchunks, nheads, ngroups,
    FIRST_ONLY: tl.constexpr, CHUNK: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_T tokens of one head. Grid: (batch · nchunks · nheads · tiles,), tiles fastest.

    `strides` are those of x, C, D and the entering states.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    TILES: tl.constexpr = (CHUNK + BLOCK_T - 1) // BLOCK_T
    x_strides, C_strides, entering_strides = strides[0], strides[1], strides[3]
    pid = tl.program_id(0)
    row = (pid // TILES).to(tl.int64)  # (batch · nchunks) · nheads
    head = row % nheads
    chunk = row // nheads % nchunks
    batch = row // nheads // nchunks
    group = head // (nheads // ngroups)
    first, stop = chunk_bounds(chunk, table_ptr, seqlen, period, chunks_per_period, CHUNK)
    if table_ptr is not None and first >= stop:
        return
    start = pid % TILES * BLOCK_T
    offs_t = start + tl.arange(0, BLOCK_T)
    offs_p = tl.arange(0, BLOCK_P).to(tl.int64)
    in_t = first + offs_t < stop
    in_p = offs_p < HEADDIM
    steps_ptr += row * (3 * CHUNK)
    high = tl.load(steps_ptr + CHUNK + offs_t, mask=in_t, other=0.0)
    low = tl.load(steps_ptr + 2 * CHUNK + offs_t, mask=in_t, other=0.0)

    acc = tl.zeros((BLOCK_T, BLOCK_P), dtype=tl.float32)
    if entering_ptr is not None:
        sequence, entry = batch, chunk
        if FIRST_ONLY and table_ptr is not None:
            sequence = tl.load(table_ptr + 3 * chunk + 2)  # that the chunk is the first of, or −1
            entry = tl.where(sequence < 0, chunk + 1, 0)
        if not FIRST_ONLY or entry == 0:
            C_ptrs = C_ptr + batch * C_strides[0] + group * C_strides[2] + (first + offs_t)[:, None] * C_strides[1]
            h_ptrs = entering_ptr + sequence * entering_strides[0] + entry * entering_strides[1]
            h_ptrs += head * entering_strides[2] + offs_p[None, :] * entering_strides[3]
            for n in tl.static_range(0, D_STATE, BLOCK_N):
                offs_n = (n + tl.arange(0, BLOCK_N)).to(tl.int64)
                in_C = in_t[:, None] & (offs_n < D_STATE)[None, :]
                in_h = in_p[None, :] & (offs_n < D_STATE)[:, None]
                C = tl.load(C_ptrs + offs_n[None, :] * C_strides[3], mask=in_C, other=0.0)  # (T, N)
                h = tl.load(h_ptrs + offs_n[:, None] * entering_strides[4], mask=in_h, other=0.0)  # (N, P)
                acc = dot(C, h, acc, DTYPE)
            acc *= tl.exp(high)[:, None]

    x_base = x_ptr + batch * x_strides[0] + head * x_strides[2] + offs_p[None, :] * x_strides[3]
    CB_base = CB_ptr + ((batch * nchunks + chunk) * ngroups + group) * (CHUNK * CHUNK) + offs_t[:, None] * CHUNK
    for s in range(0, tl.minimum(start + BLOCK_T, CHUNK), BLOCK_S):
        offs_s = s + tl.arange(0, BLOCK_S)
        in_s = first + offs_s < stop
        causal = (offs_t[:, None] >= offs_s[None, :]) & in_t[:, None] & in_s[None, :]
        CB = tl.load(CB_base + offs_s[None, :], mask=causal, other=0.0)
        step_s = tl.load(steps_ptr + offs_s, mask=in_s, other=0.0)
        high_s = tl.load(steps_ptr + CHUNK + offs_s, mask=in_s, other=0.0)
        low_s = tl.load(steps_ptr + 2 * CHUNK + offs_s, mask=in_s, other=0.0)
        decay = decay_between(high[:, None], low[:, None], high_s[None, :], low_s[None, :], causal)
        weight = tl.where(causal, CB * decay * step_s[None, :], 0.0)
        x = tl.load(x_base + (first + offs_s)[:, None] * x_strides[1], mask=in_s[:, None] & in_p[None, :], other=0.0)
        acc = dot(weight, x, acc, DTYPE)

    in_y = in_t[:, None] & in_p[None, :]
    if D_ptr is not None:
        x = tl.load(x_base + (first + offs_t)[:, None] * x_strides[1], mask=in_y, other=0.0)
        if len(strides[2]) == 1:
            acc += tl.load(D_ptr + head * strides[2][0]).to(tl.float32) * x.to(tl.float32)
        else:
            D = tl.load(D_ptr + head * strides[2][0] + offs_p * strides[2][1], mask=in_p, other=0.0)
            acc += D.to(tl.float32)[None, :] * x.to(tl.float32)
    y_ptrs = y_ptr + ((batch * seqlen + first + offs_t)[:, None] * nheads + head) * HEADDIM + offs_p[None, :]
    tl.store(y_ptrs, acc.to(DTYPE), mask=in_y)
