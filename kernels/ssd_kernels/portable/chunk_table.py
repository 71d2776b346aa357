"""Where packed sequences are cut into chunks: from cu_seqlens to a table, on the device, so that no host waits for it.

A chunk has tokens of one sequence only, so that no kernel needs to know of a boundary inside one.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.portable.configs import CHUNK_TABLE
from ssd_kernels.portable.plan import CUT, Plan
from ssd_kernels.portable.tiles import cut_chunk


class ChunkTable(NamedTuple):
    """The cut of packed sequences.

    chunks: (nchunks, 3) int64, of each chunk its first token, one past its last, and the sequence that it is the first
        of, or −1. An entry that no sequence needs has no tokens.
    sequences: (nseqs + 1, 2) int64, the chunks, and the periods, of all sequences before each, and of all at last.
    """

    chunks: Tensor
    sequences: Tensor


def chunk_table(cu_seqlens: Tensor, plan: Plan) -> ChunkTable:
    """The table of a plan for packed sequences.

    Args:
        cu_seqlens: (nseqs + 1,) int32 or int64, any stride. Whatever the values, all bounds are within the tokens there
            are, and all chunks within the room that the plan gives them.
        plan: how the call is cut.
    """
    nseqs = cu_seqlens.numel() - 1
    chunks = torch.empty((plan.nchunks, 3), dtype=torch.int64, device=cu_seqlens.device)
    sequences = torch.empty((nseqs + 1, 2), dtype=torch.int64, device=cu_seqlens.device)
    _chunk_table_kernel[(nseqs + 1,)](
        cu_seqlens, chunks, sequences, cu_seqlens.stride(0), *plan.cut, nseqs, CHUNK=plan.chunk_size,
        **CHUNK_TABLE.kwargs,
    )  # fmt: skip
    return ChunkTable(chunks, sequences)


@triton.jit(do_not_specialize=[*CUT, "nseqs"])
def _chunk_table_kernel(
    cu_seqlens_ptr, chunks_ptr, sequences_ptr, stride, seqlen, period, chunks_per_period, nchunks, nseqs,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the chunks of one sequence, the last program's: the entries left over. Grid: (nseqs + 1,).

    Each adds up what the sequences before it need by itself.
    """
    sequence = tl.program_id(0).to(tl.int64)
    chunks_before = tl.zeros((), dtype=tl.int64)
    periods_before = tl.zeros((), dtype=tl.int64)
    for i in range(0, sequence, BLOCK):
        offs = i + tl.arange(0, BLOCK).to(tl.int64)
        start, stop = _sequence_bounds(cu_seqlens_ptr + offs * stride, stride, seqlen, offs < sequence)
        whole, rest = (stop - start) // period, (stop - start) % period
        chunks_before += tl.sum(whole * chunks_per_period + tl.cdiv(rest, CHUNK))
        periods_before += tl.sum(whole + (rest > 0).to(tl.int64))
    tl.store(sequences_ptr + 2 * sequence, tl.minimum(chunks_before, nchunks))
    tl.store(sequences_ptr + 2 * sequence + 1, periods_before)

    start, stop = _sequence_bounds(cu_seqlens_ptr + sequence * stride, stride, seqlen, sequence < nseqs)
    whole, rest = (stop - start) // period, (stop - start) % period
    needed = whole * chunks_per_period + tl.cdiv(rest, CHUNK)
    entries = tl.where(sequence < nseqs, needed, nchunks - chunks_before)
    for i in range(0, entries, BLOCK):
        offs = i + tl.arange(0, BLOCK).to(tl.int64)
        in_table = (offs < entries) & (chunks_before + offs < nchunks)
        first, end = cut_chunk(offs, stop - start, period, chunks_per_period, CHUNK)
        ptrs = chunks_ptr + 3 * (chunks_before + offs)
        tl.store(ptrs, start + first, mask=in_table)
        tl.store(ptrs + 1, start + end, mask=in_table)
        tl.store(ptrs + 2, tl.where((offs == 0) & (sequence < nseqs), sequence, -1), mask=in_table)


@triton.jit
def _sequence_bounds(ptrs, stride, seqlen, mask):
    """The first token of sequences and one past their last, both within the tokens there are."""
    start = tl.load(ptrs, mask=mask, other=0).to(tl.int64)
    stop = tl.load(ptrs + stride, mask=mask, other=0).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), seqlen)
    return start, tl.minimum(tl.maximum(stop, start), seqlen)
