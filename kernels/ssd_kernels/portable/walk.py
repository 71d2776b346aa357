"""One step of the walk: the outputs of a chunk, and the state h that leaves it, with u, w and m of chunk_cumsum.

    y_i = u_i (2^m h C_i + Σ_{j≤i} CB_ij w_j x_j) + D x_i        h ← 2^{a_last − m} (2^m h + Σ_j w_j x_j B_jᵀ)

Channels stand in rows and tokens in columns, so that w x is the left factor of both sums as it is, and h never changes
places. A chunk whose decay is beyond the range of u and w takes the sums with their decays written out instead. There
is one tile of rows, of one head, or there are two.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import triton
import triton.language as tl

from ssd_kernels.portable.chunk_cumsum import FACTORS
from ssd_kernels.portable.marked_chunk import marked_outputs, marked_state
from ssd_kernels.portable.tiles import dot, load


@triton.jit
def walk_chunk(
    h, enter, leave, D, x_ptrs, B_ptrs, C_ptrs, CB_ptr, y_ptrs, vectors_ptrs, vectors_offset,
    first, stop, in_r, in_n, in_tile1, strides,
    DTYPE: tl.constexpr, BLOCK_T: tl.constexpr, TILES: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    """Write the outputs of a chunk, if y_ptrs is not None, and return the state after it.

    `strides` are those of a token in x, B, C and y. Where MARKED some tile's chunk is: its outputs beyond the range and
    its state are made in another way. What is within the range, and the other tile, has the bits it has in any company:
    a factor that is a power of two may stand before a product or after.
    """
    SLICE: tl.constexpr = 16  # tokens of a marked chunk at once
    offs_t = tl.arange(0, BLOCK_T)
    offs = (first + offs_t).to(tl.int64)
    in_t = offs_t < stop - first
    vectors0_ptr, vectors1_ptr = vectors_ptrs[0] + vectors_offset, vectors_ptrs[1] + vectors_offset
    if not MARKED:
        w = _vectors(in_tile1, vectors0_ptr + offs_t, vectors1_ptr + offs_t, TILES)
        if y_ptrs is not None:  # this early, so that the outputs do not wait for it
            u = _vectors(in_tile1, vectors0_ptr + BLOCK_T + offs_t, vectors1_ptr + BLOCK_T + offs_t, TILES)
        # All that takes x is a product, so that the compiler copies it into shared memory chunks ahead.
        x = load(x_ptrs[:, None] + offs[None, :] * strides[0], in_r, in_t)  # (R, T)
        wx = x.to(tl.float32) * w  # (R, T)
        h *= enter
    if y_ptrs is not None:
        C = load(C_ptrs + offs[None, :] * strides[2], in_n, in_t)  # (N, T)
        y = dot(h, C, tl.zeros((h.shape[0], BLOCK_T), dtype=tl.float32), DTYPE)  # (R, T)
        if MARKED:
            y1 = y
            y = marked_outputs(
                y, enter, x_ptrs, CB_ptr, vectors0_ptr, first, stop, in_r, strides[0], DTYPE, BLOCK_T, SLICE
            )
            if TILES == 2:
                y1 = marked_outputs(
                    y1, enter, x_ptrs, CB_ptr, vectors1_ptr, first, stop, in_r, strides[0], DTYPE, BLOCK_T, SLICE
                )
                y = tl.where(in_tile1, y1, y)
            if D is not None:
                x = load(x_ptrs[None, :] + offs[:, None] * strides[0], in_t, in_r)  # (T, R)
        else:
            CB = tl.load(CB_ptr + offs_t[:, None] + offs_t[None, :] * BLOCK_T)  # (T, T), transposed
            y = dot(wx, CB, y, DTYPE)
            y *= u
            if D is not None:  # x itself where y is, to the last bit: a product with 1
                eye = (offs_t[:, None] == offs_t[None, :]).to(DTYPE)
                x = tl.trans(dot(x, eye, tl.zeros((h.shape[0], BLOCK_T), dtype=tl.float32), DTYPE))
        y = tl.trans(y)  # back to tokens in rows, as it lies in memory
        if D is not None:
            y = tl.fma(D, x.to(tl.float32), y)  # so that it is one wherever y is from
        tl.store(y_ptrs + offs[:, None] * strides[3], y.to(DTYPE), mask=in_t[:, None] & in_r[None, :])
    if MARKED:
        h = marked_state(
            h, enter, leave, x_ptrs, B_ptrs, in_tile1, vectors0_ptr, vectors1_ptr, first, stop, in_r, in_n,
            strides[0], strides[1], DTYPE, BLOCK_T, SLICE, TILES,
        )  # fmt: skip
    else:
        B = load(B_ptrs + offs[:, None] * strides[1], in_t, in_n)  # (T, N)
        h = dot(wx, B, h, DTYPE) * leave
    return h


@triton.jit
def factors(in_tile1, ptrs, chunk, NHEADS: tl.constexpr, TILES: tl.constexpr):
    """What a state is multiplied by on entering a chunk and on leaving it; for each row, if there are two tiles."""
    offset = chunk.to(tl.int64) * (NHEADS * FACTORS)
    ptr = ptrs[0] + offset
    enter, leave = tl.load(ptr), tl.load(ptr + 1)
    if TILES == 2:
        ptr = ptrs[1] + offset
        enter = tl.where(in_tile1, tl.load(ptr), enter)
        leave = tl.where(in_tile1, tl.load(ptr + 1), leave)
    return enter, leave


@triton.jit
def alike(MARKED: tl.constexpr, ptrs, chunk, NHEADS: tl.constexpr, left, TILES: tl.constexpr):
    """How many of the next chunks are marked, or are not, before one that differs; of many, some."""
    AHEAD: tl.constexpr = 64
    offs_c = tl.arange(0, AHEAD)
    offs = (chunk + offs_c).to(tl.int64) * (NHEADS * FACTORS) + 1
    marked = tl.load(ptrs[0] + offs, mask=offs_c < left, other=1.0) == 0.0
    if TILES == 2:
        marked |= tl.load(ptrs[1] + offs, mask=offs_c < left, other=1.0) == 0.0
    differs = marked
    if MARKED:
        differs = marked == 0
    return tl.minimum(tl.min(tl.where(differs, offs_c, AHEAD)), left)


@triton.jit
def _vectors(in_tile1, ptrs0, ptrs1, TILES: tl.constexpr):
    """A vector of the tile's head (1, T), or for each row that of its tile's, (R, T)."""
    vector = tl.load(ptrs0)[None, :]
    if TILES == 2:
        vector = tl.where(in_tile1, tl.load(ptrs1)[None, :], vector)
    return vector
