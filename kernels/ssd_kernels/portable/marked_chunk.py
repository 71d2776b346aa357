"""The exact path of a chunk whose decay is beyond the range of u and w, with each pair's decay written out.

    y_i = 2^{a_i} h C_i + Σ_{j≤i} CB_ij 2^{a_i − a_j} dt_j x_j
    h ← 2^{a_last} h + Σ_j 2^{a_last − a_j} dt_j x_j B_jᵀ

a is kept as a sum of two fp32 numbers, so that sums of thousands of octaves cancel without loss; the difference is
masked before the exponential, which would overflow above the diagonal. Reference: :mod:`ssd_kernels.chunked`.

Few calls come here: some tokens are taken at a time, so that the path costs the kernel no registers.
"""

import triton
import triton.language as tl

from ssd_kernels.portable.tiles import dot, exp2_of_sum, load


@triton.jit
def marked_outputs(
    hC, enter, x_ptrs, CB_ptr, vectors_ptr, first, stop, in_r, x_stride,
    DTYPE: tl.constexpr, BLOCK_T: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """The outputs (R, T) of one head's chunk, of h Cᵀ (R, T); those within the range by u and w, bit by bit."""
    offs_t = tl.arange(0, BLOCK_T)
    _, high, low = _vectors(vectors_ptr, offs_t, BLOCK_T)
    u = tl.load(vectors_ptr + BLOCK_T + offs_t)
    within = (u != 0.0)[None, :]
    acc = hC * tl.where(within, enter, exp2_of_sum(high, low)[None, :])
    for j in tl.range(0, BLOCK_T, SLICE, num_stages=1):  # more would cost the walk registers that it does not have
        offs_j = j + tl.arange(0, SLICE)
        x = load(x_ptrs[None, :] + (first + offs_j).to(tl.int64)[:, None] * x_stride, first + offs_j < stop, in_r)
        x = tl.trans(x).to(tl.float32)  # (R, J)
        CB = tl.load(CB_ptr + offs_j[:, None] + offs_t[None, :] * BLOCK_T).to(tl.float32)  # (J, T), transposed
        step, high_j, low_j = _vectors(vectors_ptr, offs_j, BLOCK_T)
        beyond = (offs_j[:, None] <= offs_t[None, :]) & (within == 0)
        octaves = tl.where(beyond, (high[None, :] - high_j[:, None]) + (low[None, :] - low_j[:, None]), 0.0)
        acc = dot(x, tl.where(beyond, CB * tl.exp2(octaves) * step[:, None], 0.0), acc, DTYPE)
        acc = dot(x * tl.load(vectors_ptr + offs_j)[None, :], tl.where(within, CB, 0.0), acc, DTYPE)
    return acc * tl.where(within, u[None, :], 1.0)


@triton.jit
def marked_state(
    h, enter, leave, x_ptrs, B_ptrs, in_tile1, vectors0_ptr, vectors1_ptr, first, stop, in_r, in_n, x_stride, B_stride,
    DTYPE: tl.constexpr, BLOCK_T: tl.constexpr, SLICE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The state (R, N) after a chunk, of h (R, N) before; that of a tile which is not marked by w, bit by bit."""
    last = BLOCK_T - 1 + tl.arange(0, 1)
    _, high, low = _vectors(vectors0_ptr, last, BLOCK_T)
    decay = exp2_of_sum(high, low)[None, :]
    if TILES == 2:
        _, high1, low1 = _vectors(vectors1_ptr, last, BLOCK_T)
        decay = tl.where(in_tile1, exp2_of_sum(high1, low1)[None, :], decay)
    h *= tl.where(leave == 0.0, decay, enter)
    for j in tl.range(0, BLOCK_T, SLICE, num_stages=3 if BLOCK_T > SLICE else 1):
        offs_j = j + tl.arange(0, SLICE)
        offs = (first + offs_j).to(tl.int64)
        x = load(x_ptrs[None, :] + offs[:, None] * x_stride, offs < stop, in_r)
        B = load(B_ptrs + offs[:, None] * B_stride, offs < stop, in_n)  # (J, N)
        w = _state_weights(vectors0_ptr, offs_j, high, low, BLOCK_T)
        if TILES == 2:
            w = tl.where(in_tile1, _state_weights(vectors1_ptr, offs_j, high1, low1, BLOCK_T), w)
        h = dot(tl.trans(x).to(tl.float32) * w, B, h, DTYPE)
    return h * tl.where(leave == 0.0, 1.0, leave)


@triton.jit
def _state_weights(vectors_ptr, offs, last_high, last_low, BLOCK_T: tl.constexpr):
    """The weights of x in the state, (1, J): 2^{a_last − a_j} dt_j; or w, of a chunk that is not marked."""
    step, high, low = _vectors(vectors_ptr, offs, BLOCK_T)
    w = step * tl.exp2((last_high - high) + (last_low - low))
    return tl.where(_is_marked(vectors_ptr, BLOCK_T), w, tl.load(vectors_ptr + offs))[None, :]


@triton.jit
def _vectors(vectors_ptr, offs, BLOCK_T: tl.constexpr):
    """Steps and running sums; of a chunk that is not marked, whatever stood in memory."""
    step = tl.load(vectors_ptr + 2 * BLOCK_T + offs)
    high = tl.load(vectors_ptr + 3 * BLOCK_T + offs)
    low = tl.load(vectors_ptr + 4 * BLOCK_T + offs)
    return step, high, low


@triton.jit
def _is_marked(vectors_ptr, BLOCK_T: tl.constexpr):
    """Whether the last token is beyond the range."""
    return tl.load(vectors_ptr + 2 * BLOCK_T - 1) == 0.0
