"""A chunk with tokens beyond the range of u and w, each with an m of its own; or with fewer tokens than others.

    y_i = u_i (2^{m_i} h C_i + Σ_{j≤i} CB_ij 2^{m_i − m_j} w_j x_j) + D x_i
    h ← u_last (2^{m_last} h + Σ_j 2^{m_last − m_j} w_j x_j B_jᵀ)

Of two tokens within the range the m are one, and cancel. Between one within and one beyond, 2^{m_i − m_j} may be less
than fp32 holds where the product with w_j is not: weights of less than 2⁻²⁶ dt_j may be left out.

Reference: :mod:`ssd_kernels.chunked`.
"""

import triton
import triton.language as tl

from ssd_kernels.portable.tiles import dot


@triton.jit
def other_products(CB, m_ptr, BLOCK_T: tl.constexpr):
    """CB_ij 2^{m_i − m_j}, (T, T), j in rows, of values that CB's dtype holds."""
    j, i = tl.arange(0, BLOCK_T)[:, None], tl.arange(0, BLOCK_T)[None, :]
    # Masked before the exponential, which would overflow above the diagonal.
    octaves = tl.where(j <= i, tl.load(m_ptr + i) - tl.load(m_ptr + j), 0.0)
    return (CB.to(tl.float32) * tl.exp2(octaves)).to(CB.dtype)


@triton.jit
def other_state(h, leave, x, w, B, m_ptr, DTYPE: tl.constexpr, BLOCK_T: tl.constexpr):
    """The state (R, N) after a chunk, of h (R, N) before, x (R, T), w (1, T) and B (T, N)."""
    m_last = tl.load(m_ptr + BLOCK_T - 1 + tl.arange(0, 1))[None, :]
    root = tl.exp2(0.5 * (m_last - tl.load(m_ptr + tl.arange(0, BLOCK_T))[None, :]))
    # In two factors: neither underflows before the product does.
    return dot(x.to(tl.float32) * (w * root * root), B, h * tl.exp2(m_last), DTYPE) * leave
