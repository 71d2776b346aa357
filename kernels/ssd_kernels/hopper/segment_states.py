"""States at the boundaries of segments: where heads do not fill the chip, programs share a sequence between them.

Each sequence is cut into pieces, and this kernel finds what each piece adds to the state, and its decay:

    S = Σ_j 2^(a_end − a_j) dt_j x_j B_jᵀ

Chunks whose decay to the end of their piece is below 2^-NEGLIGIBLE are left out. The scan adds up the pieces before its
segment, until they have decayed as far.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: tests/correctness/hopper_model.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.hopper.configs import CHUNK, GROUP, NEGLIGIBLE, PART, SEGMENT_STATES, WIDTH, Cut
from ssd_kernels.hopper.decays import BETWEEN, EXPONENTS, TO_END, TOTAL
from ssd_kernels.hopper.prepare import Prepared
from ssd_kernels.hopper.slots import CUT, piece_bounds, row_bounds
from ssd_kernels.interface import Sizes
from ssd_kernels.launching import launch


class Pieces(NamedTuple):
    """What each piece but those of the last segment adds.

    states: (batch or nseqs, pieces, nheads, headdim, d_state) fp32.
    decays: (batch or nseqs, pieces, nheads · parts of a head) fp32, in units of log 2.
    """

    states: Tensor
    decays: Tensor


def segment_states(
    x: Tensor, B: Tensor, prepared: Prepared, cu_seqlens: Tensor | None, sizes: Sizes, nslots: int, cut: Cut
) -> Pieces:
    """The pieces before the last segment; `x` and `B` as of :class:`ssd_kernels.interface.SSD`."""
    nparts = sizes.nheads * (sizes.headdim // PART)
    count, rows = cut.pieces_before_last, sizes.state_shape[0]
    states = torch.empty((rows, count, *sizes.state_shape[1:]), dtype=torch.float32, device=x.device)
    decays = torch.empty((rows, count, nparts), dtype=torch.float32, device=x.device)
    width = min(sizes.d_state, WIDTH)
    launch(
        _segment_states_kernel, (rows * count * nparts * (sizes.d_state // width),),
        x, B, prepared.factors.view(torch.int32), prepared.exponents, states, decays, x.stride(), B.stride(),
        cu_seqlens, 0 if cu_seqlens is None else cu_seqlens.stride(0),
        sizes.seqlen, nslots, count, cut.pieces, sizes.nheads, sizes.ngroups,
        PARTS=sizes.headdim // PART, D_STATE=sizes.d_state, CHUNK=CHUNK, PART=PART, GROUP=GROUP,
        EXPONENTS=EXPONENTS, BLOCK_N=width, **SEGMENT_STATES.kwargs,
    )  # fmt: skip
    return Pieces(states, decays)


@triton.jit(do_not_specialize=[*CUT[:2], "count", "pieces", "nheads", "ngroups"])
def _segment_states_kernel(
    x_ptr, B_ptr, pairs_ptr, exponents_ptr, states_ptr, decays_ptr, x_strides, B_strides,
    cu_seqlens_ptr, cu_stride, seqlen, nslots, count, pieces, nheads, ngroups,
    PARTS: tl.constexpr, D_STATE: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr,
    EXPONENTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N columns of one part of one head in one piece.

    Grid: (rows · count · nheads · PARTS · D_STATE / BLOCK_N,), columns fastest, then parts.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = D_STATE // BLOCK_N
    pid, block = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS
    nparts = nheads * PARTS
    head, part = (pid % nparts // PARTS).to(tl.int64), pid % PARTS
    piece, row = pid // nparts % count, (pid // nparts // count).to(tl.int64)
    start, stop, first, last = row_bounds(row, cu_seqlens_ptr, cu_stride, seqlen, CHUNK)
    begin, end = piece_bounds(piece, pieces, first, last, 1, False, GROUP)
    batch = row if cu_seqlens_ptr is None else row * 0
    rows = (batch * nheads + head) * nslots
    exponents_ptr += rows * EXPONENTS

    # From the end backwards, as far as there is anything left.
    total, keep = tl.zeros((), tl.float32), begin
    slot = end
    while slot > begin:
        slots = slot - 1 - tl.arange(0, BLOCK_C)
        totals = tl.load(exponents_ptr + slots * EXPONENTS + TOTAL, mask=slots >= begin, other=0.0)
        after = total + tl.cumsum(totals, 0) - totals
        # The first chunk, counted from the end, that is negligible: all before it are.
        gone = tl.max(tl.where((after < -NEGLIGIBLE) & (slots >= begin), slots + 1, begin), 0)
        total += tl.sum(totals, 0)
        keep = tl.maximum(keep, gone)
        slot = tl.where(gone > begin, begin, slot - BLOCK_C)

    offs_p, offs_q = tl.arange(0, PART), tl.arange(0, CHUNK)
    offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    x_ptrs = x_ptr + batch * x_strides[0] + head * x_strides[2] + (part * PART + offs_p)[:, None] * x_strides[3]
    B_ptrs = B_ptr + batch * B_strides[0] + head // (nheads // ngroups) * B_strides[2] + offs_n[None, :] * B_strides[3]
    acc = tl.zeros((PART, BLOCK_N), dtype=tl.float32)
    # From the end backwards again: `after` is what a chunk's decay is multiplied by, in units of log 2. Every load
    # feeds the product of its own turn, and is of 32 bits at least: others are no copies ahead, and are waited for.
    after = tl.zeros((), tl.float32)
    for i in range(end - keep):
        slot = end - 1 - i
        tokens = start + (slot - first) * CHUNK + offs_q
        pairs_ptrs = pairs_ptr + (rows + slot) * (2 * CHUNK) + tl.arange(0, CHUNK // 2)
        w = _unpacked(tl.load(pairs_ptrs)) + _unpacked(tl.load(pairs_ptrs + CHUNK // 2))
        after += tl.load(exponents_ptr + (slot + 1) * EXPONENTS + TOTAL, mask=i > 0, other=0.0)
        to_end = tl.load(exponents_ptr + slot * EXPONENTS + TO_END)
        of_first = to_end + tl.load(exponents_ptr + slot * EXPONENTS + BETWEEN)
        w *= tl.exp2(after + tl.where(offs_q < CHUNK // 2, of_first, to_end))
        x = tl.load(x_ptrs + tokens[None, :] * x_strides[1], mask=(tokens < stop)[None, :], other=0.0)  # (P, Q)
        B = tl.load(B_ptrs + tokens[:, None] * B_strides[1], mask=(tokens < stop)[:, None], other=0.0)  # (Q, N)
        acc = tl.dot((x.to(tl.float32) * w[None, :]).to(DTYPE), B, acc, input_precision="ieee")
    after += tl.load(exponents_ptr + keep * EXPONENTS + TOTAL, mask=keep < end, other=0.0)
    state = (row * count + piece) * nparts + pid % nparts
    state_ptrs = states_ptr + state * (PART * D_STATE) + offs_p[:, None] * D_STATE + offs_n[None, :]
    tl.store(state_ptrs, acc)
    if block == 0:
        tl.store(decays_ptr + state, tl.where(keep > begin, after - 1000.0, after))


@triton.jit
def _unpacked(pairs):
    """The two bf16 numbers in each 32 bits, as fp32, one after the other."""
    return tl.interleave((pairs << 16).to(tl.float32, bitcast=True), (pairs & -0x10000).to(tl.float32, bitcast=True))
