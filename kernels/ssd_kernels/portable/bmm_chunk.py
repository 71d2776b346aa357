"""Products of C and B inside a chunk: CB_ij = C_i · B_j for j ≤ i, else 0. They are the same for all heads of a group.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: `(C @ B.mT).tril()`.
"""

import triton
import triton.language as tl

from ssd_kernels.portable.tiles import dot


@triton.jit
def bmm_chunk(
    C_ptrs, B_ptrs, CB_ptr, in_chunk, C_stride, B_stride,
    D_STATE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Fill the products of one chunk and group, (BLOCK_T, BLOCK_T) at CB_ptr, BLOCK_N of the state at once.

    C_ptrs and B_ptrs are (T,) pointers to the tokens, in_chunk says which exist, the strides are of the state.
    """
    offs_t = tl.arange(0, BLOCK_T)
    acc = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
    for n in tl.static_range(0, D_STATE, BLOCK_N):
        offs_n = (n + tl.arange(0, BLOCK_N)).to(tl.int64)
        in_n = offs_n < D_STATE
        in_C = in_chunk[:, None] & in_n[None, :]
        in_B = in_chunk[None, :] & in_n[:, None]
        C = tl.load(C_ptrs[:, None] + offs_n[None, :] * C_stride, mask=in_C, other=0.0)  # (T, N)
        B = tl.load(B_ptrs[None, :] + offs_n[:, None] * B_stride, mask=in_B, other=0.0)  # (N, T)
        acc = dot(C, B, acc, C.dtype)
    acc = tl.where(offs_t[:, None] >= offs_t[None, :], acc, 0.0)
    CB_ptrs = CB_ptr + offs_t[:, None] * BLOCK_T + offs_t[None, :]
    tl.store(CB_ptrs, acc.to(CB_ptr.dtype.element_ty))
