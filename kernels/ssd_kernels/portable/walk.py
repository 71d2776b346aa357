"""One step of the walk: the outputs of a chunk, and the state h that leaves it, with u, w and m of chunk_cumsum.

    y_i = u_i (2^m h C_i + Σ_{j≤i} CB_ij w_j x_j) + D x_i        h ← 2^{a_last − m} (2^m h + Σ_j w_j x_j B_jᵀ)

Channels stand in rows and tokens in columns, so that w x is the left factor of both sums as it is, and h never changes
places. A chunk that is not plain, with tokens beyond the range of u and w or fewer than others, is a little more work.

What remains to be done for the outputs of a plain chunk after its products is left to :func:`write_plain`, which is
called when the next chunk begins, while the copies of that one arrive.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import triton
import triton.language as tl

from ssd_kernels.portable.chunk_cumsum import FACTORS
from ssd_kernels.portable.other_chunk import other_products, other_state
from ssd_kernels.portable.tiles import NEGLIGIBLE, dot, load


@triton.jit
def walk_chunk(
    h, enter, leave, D, x_ptrs, B_ptrs, C_ptrs, CB_ptr, y_ptrs, vectors_ptr, first, stop, in_r, in_n,
    DTYPE: tl.constexpr, BLOCK_T: tl.constexpr, PLAIN: tl.constexpr, TWO_AHEAD: tl.constexpr, STRIDES: tl.constexpr,
):  # fmt: skip
    """The state after a chunk, and what :func:`write_plain` takes to write the outputs of a plain one.

    STRIDES are those of a token in x, B, C and y; without y_ptrs there are no outputs. PLAIN: the chunk is whole, and
    within the range. One that is not is made in another way, with the same bits as far as it is within the range: a
    factor that is a power of two may stand before a product or after. Its outputs are written at once. TWO_AHEAD: what
    a plain one reads is copied two chunks ahead, into two buffers.
    """
    if PLAIN:  # before anything that waits for the copies of this chunk
        h *= enter
    state = h.to(DTYPE) if tl.bfloat16 == DTYPE else h
    offs_t = tl.arange(0, BLOCK_T)
    rows = offs_t.to(tl.int64)
    start = first.to(tl.int64)
    in_t = offs_t < BLOCK_T if PLAIN else offs_t < stop - first
    m_ptr = vectors_ptr + 2 * BLOCK_T
    w, u = weights(vectors_ptr, BLOCK_T)
    # All that takes x is a product, so that the compiler copies it into shared memory chunks ahead.
    x = load((x_ptrs + start * STRIDES[0])[:, None] + rows[None, :] * STRIDES[0], in_r, in_t)  # (R, T)
    wx = x.to(tl.float32) * w  # (R, T)
    if tl.bfloat16 == DTYPE:  # once for both products, and before registers run short
        wx = wx.to(DTYPE)
    zeros = tl.zeros((h.shape[0], BLOCK_T), dtype=tl.float32)
    outputs = no_outputs(h.shape[0], BLOCK_T)
    if y_ptrs is not None:
        C_tile = C_ptrs + start * STRIDES[2] + rows[None, :] * STRIDES[2]
        C = load(C_tile, in_n, in_t)  # (N, T)
        CB_tile = CB_ptr + offs_t[:, None] + offs_t[None, :] * BLOCK_T
        CB = tl.load(CB_tile)  # (T, T), transposed
        if not PLAIN:
            CB = other_products(CB, m_ptr, BLOCK_T)
        y = dot(state, C, zeros, DTYPE)  # (R, T)
    B_tile = B_ptrs + start * STRIDES[1] + rows[:, None] * STRIDES[1]
    if PLAIN:
        B = load(B_tile, in_t, in_n)  # (T, N)
        h = dot(wx, B, h, DTYPE) * leave  # before the other products, under which it is scaled
        if y_ptrs is not None:
            y = dot(wx, CB, y, DTYPE)
            x_as_y = y
            if D is not None:  # x where y is, to the last bit: a product with 1
                eye = (offs_t[:, None] == offs_t[None, :]).to(DTYPE)
                x_as_y = dot(x, eye, zeros, DTYPE)
            outputs = y, x_as_y, u
            if TWO_AHEAD:
                in_two_buffers(C_tile, C)
                in_two_buffers(CB_tile, CB)
                in_two_buffers(B_tile, B)
    else:
        if y_ptrs is not None:
            y *= tl.exp2(tl.load(m_ptr + offs_t))[None, :]
            y = tl.trans(dot(wx, CB, y, DTYPE) * u)  # back to tokens in rows, as it lies in memory
            if D is not None:  # read again: registers are few
                x_as_y = load((x_ptrs + start * STRIDES[0])[None, :] + rows[:, None] * STRIDES[0], in_t, in_r)
                y = tl.fma(D, x_as_y.to(tl.float32), y)  # so that it is one wherever y is from
            y_tile = y_ptrs + start * STRIDES[3] + rows[:, None] * STRIDES[3]
            tl.store(y_tile, y.to(DTYPE), mask=in_t[:, None] & in_r[None, :])
        B = load(B_tile, in_t, in_n)  # (T, N)
        h = other_state(h, leave, x, w, B, m_ptr, DTYPE, BLOCK_T)
    return h, outputs


@triton.jit
def weights(ptr, BLOCK_T: tl.constexpr):
    """W and u of a chunk, (1, T) each. Read as one: of this many elements every thread copies one, of fewer several."""
    both = tl.load(ptr + tl.arange(0, 2 * BLOCK_T))
    w, u = tl.split(tl.trans(tl.reshape(both, (2, BLOCK_T))))
    return w[None, :], u[None, :]


@triton.jit
def in_two_buffers(ptrs, tile):
    """Have Triton keep a tile that is copied two turns ahead in two buffers, so that two programs share the memory.

    Of one that goes into a product of Hopper's, and nowhere else, it keeps a third, as such a product may still be
    under way when the next turn begins. In the walk none is. Here the tile is used a second time, in a store that is
    never made and of which no instruction is left.
    """
    tl.store(ptrs, tile, mask=tl.program_id(0) < 0)


@triton.jit
def no_outputs(ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """What walk_chunk gives for write_plain, of a chunk that there is not."""
    zeros = tl.zeros((ROWS, BLOCK_T), dtype=tl.float32)
    return zeros, zeros, tl.zeros((1, BLOCK_T), dtype=tl.float32)


@triton.jit
def write_plain(outputs, D, y_ptrs, stop, in_r, DTYPE: tl.constexpr, BLOCK_T: tl.constexpr, STRIDE: tl.constexpr):
    """Write the outputs of the plain chunk that ends at token `stop`, y_ptrs (1, R) where token 0 is written.

    They are stored as (T / 16, 2, 2, 4, R), tokens in the order in which registers hold them: so Triton 3.6 lets them
    change places between threads at once, and as (T, R) in T / 16 rounds of two barriers each.
    """
    y, x_as_y, u = outputs
    y = tl.trans(y * u)  # back to tokens in rows, as it lies in memory
    if D is not None:
        y = tl.fma(D, tl.trans(x_as_y), y)
    n: tl.constexpr = BLOCK_T // 16
    y = tl.permute(tl.reshape(y.to(DTYPE), (n, 2, 4, 2, y.shape[1])), (0, 1, 3, 2, 4))
    rows = tl.permute(tl.reshape(tl.arange(0, BLOCK_T), (n, 2, 4, 2, 1)), (0, 1, 3, 2, 4)).to(tl.int64)
    y_ptrs += (stop.to(tl.int64) - BLOCK_T) * STRIDE
    tl.store(y_ptrs[None, None, None, :, :] + rows * STRIDE, y, mask=in_r[None, None, None, None, :])


@triton.jit
def factors(ptr, chunk, NHEADS: tl.constexpr):
    """What a state is multiplied by on entering a plain chunk and on leaving any."""
    ptr += chunk.to(tl.int64) * (NHEADS * FACTORS)
    return tl.load(ptr), tl.load(ptr + 1)


@triton.jit
def alike(PLAIN: tl.constexpr, ptr, chunk, NHEADS: tl.constexpr, left, whole):
    """How many of the next chunks, `left`, of which `whole` are, are plain, or are not, before one that differs."""
    AHEAD: tl.constexpr = 32  # of many, some: a warp finds them by itself
    offs_c = tl.arange(0, AHEAD)
    offs = (chunk + offs_c).to(tl.int64) * (NHEADS * FACTORS)
    plain = (offs_c < whole) & (tl.load(ptr + offs, mask=offs_c < left, other=0.0) != 0.0)
    differs = plain == 0 if PLAIN else plain
    return tl.minimum(tl.min(tl.where(differs, offs_c, AHEAD)), left)


@triton.jit
def forgotten(ptr, count, NHEADS: tl.constexpr):
    """How many of `count` chunks come before all of which something is left at the end; and the octaves of them all.

    Each is asked, as a state may also grow: what is added before it shrinks and grows is not forgotten. Nor is a NaN.
    """
    BLOCK: tl.constexpr = 128
    kept = count
    left = tl.zeros((), dtype=tl.float32)  # octaves from the last chunk that has been asked to the segment's end
    for done in range(0, count, BLOCK):
        chunks = count - 1 - done - tl.arange(0, BLOCK)
        offs = (chunks + 1).to(tl.int64) * (NHEADS * FACTORS)  # of the chunk that follows
        octaves = tl.load(ptr + offs + 2, mask=(chunks >= 0) & (chunks + 1 < count), other=0.0)
        of_each = left + tl.cumsum(octaves)
        kept = tl.minimum(kept, tl.min(tl.where((chunks >= 0) & ~(of_each < -NEGLIGIBLE), chunks, count)))
        left += tl.sum(octaves)
    return kept, left + tl.load(ptr + 2)
