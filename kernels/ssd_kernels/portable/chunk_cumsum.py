"""Steps and running decays of a chunk: dt_t = clamp(softplus(dt_t + dt_bias)), a_t = Σ_{s≤t in the chunk} dt_s A.

Inside a chunk e^{a_i − a_j} dt_j = u_i w_j, with u_i = 2^{a_i − m}, w_j = dt_j 2^{m − a_j}, a counted in octaves and m
near the middle of its range: two vectors instead of a matrix, and x_j is weighted once for y and the state both. That
holds as far as a stays within MAX_OCTAVES. A token beyond takes for m its own a, rounded, and its chunk is marked:
there e^{a_i − a_j} dt_j = u_i 2^{m_i − m_j} w_j. Every m is a whole number: u and w differ by exact powers of two, and
y by no bit, from what they would be if the tokens that follow were others.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060). Reference: :func:`ssd_kernels.interface.discretise`.
"""

import triton
import triton.language as tl

from ssd_kernels.portable.activations import softplus

# Half of it either side of the middle: 2^±100 leaves products of 2^±26 in the range of fp32 and bf16.
MAX_OCTAVES = tl.constexpr(200.0)
# Rows of the vectors: w, u and m.
VECTORS = tl.constexpr(3)
# Of the factors: what a state is multiplied by to be added to w x, 2^m, or 0, which marks the chunk; after that,
# 2^{a_last − m_last}; and a_last.
FACTORS = tl.constexpr(3)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def chunk_cumsum(
    dt_ptrs, A_ptrs, dt_bias_ptrs, vectors_ptr, factors_ptr, offs_h, in_h, in_chunk, is_other, dt_low, dt_high,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Fill the vectors and factors of some heads of one chunk.

    dt_ptrs are (T, H) pointers, A_ptrs and dt_bias_ptrs (H,), the latter None where there is no bias; in_chunk (T, H)
    and in_h (H,) say which exist. At vectors_ptr, (nheads, VECTORS, BLOCK_T) fp32: w is zero past the end of the
    chunk, and m is there where the chunk is marked, or `is_other`: for another reason not plain to the walk. At
    factors_ptr, (nheads, FACTORS) fp32. The sum is fp64: it may be of thousands of octaves, of which differences count.
    SIGNED: steps may be negative.
    """
    dt = tl.load(dt_ptrs, mask=in_chunk, other=0.0).to(tl.float32)  # (T, H)
    if dt_bias_ptrs is not None:
        dt += tl.load(dt_bias_ptrs, mask=in_h, other=0.0).to(tl.float32)[None, :]
    if SOFTPLUS:
        dt = softplus(dt)
    dt = tl.where(dt < dt_low, dt_low, dt)  # comparisons, not minimum and maximum: a NaN stays
    dt = tl.where(dt > dt_high, dt_high, dt)
    dt = tl.where(in_chunk, dt, 0.0)
    A = tl.load(A_ptrs, mask=in_h, other=0.0).to(tl.float64) * _LOG2E
    a = tl.cumsum(dt.to(tl.float64) * A[None, :], axis=0)

    whole = tl.floor(a + 0.5)
    rest = (a - whole).to(tl.float32)
    whole = whole.to(tl.float32)
    # From 0, where a state enters, to the end of the range; of steps of both signs, its two ends added.
    if SIGNED:
        # All the way that a went, up and down: no less than its range, and known at each token.
        fits = tl.cumsum(tl.abs(dt * A.to(tl.float32)[None, :]), axis=0) <= MAX_OCTAVES
        lowest = tl.min(tl.where(fits, whole, 0.0), axis=0)
        highest = tl.max(tl.where(fits, whole, 0.0), axis=0)
        ends = tl.minimum(lowest, 0.0) + tl.maximum(highest, 0.0)
    else:
        fits = tl.abs(whole) <= MAX_OCTAVES
        reach = tl.max(tl.where(fits, tl.abs(whole), 0.0), axis=0)
        ends = tl.where(A < 0.0, -reach, reach)
    middle = tl.floor(0.5 * ends)
    above = tl.where(fits, whole - middle[None, :], 0.0)
    w = dt * tl.exp2(-rest) * power_of_2(-above)
    u = tl.exp2(rest) * power_of_2(above)
    vector_ptrs = vectors_ptr + offs_h[None, :] * (VECTORS * BLOCK_T) + tl.arange(0, BLOCK_T)[:, None]
    tl.store(vector_ptrs, w, mask=in_h[None, :])
    tl.store(vector_ptrs + BLOCK_T, u, mask=in_h[None, :])
    plain = tl.min(fits.to(tl.int32), axis=0) == 1
    tl.store(vector_ptrs + 2 * BLOCK_T, whole - above, mask=(in_h & (~plain | is_other))[None, :])

    is_last = tl.arange(0, BLOCK_T)[:, None] == BLOCK_T - 1
    factor_ptrs = factors_ptr + FACTORS * offs_h
    tl.store(factor_ptrs, tl.where(plain, power_of_2(middle), 0.0), mask=in_h)
    tl.store(factor_ptrs + 1, tl.sum(tl.where(is_last, u, 0.0), axis=0), mask=in_h)
    tl.store(factor_ptrs + 2, tl.sum(tl.where(is_last, whole + rest, 0.0), axis=0), mask=in_h)


@triton.jit
def power_of_2(exponent):
    """2 to a whole number n within ±126, exact: the last bits of 2²³ + 2²² + 127 + n are the exponent's."""
    return ((exponent + 12583039.0).to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
