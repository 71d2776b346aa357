"""Where packed sequences are cut: from cu_seqlens to a table, on the device, so that no host waits for it.

A segment and a chunk have tokens of one sequence only, so that no kernel needs to know of a boundary inside one.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.launching import launch
from ssd_kernels.portable.configs import CHUNK_TABLE
from ssd_kernels.portable.plan import CUT, Plan
from ssd_kernels.portable.tiles import count_chunks, cut_chunk


class ChunkTable(NamedTuple):
    """The cut of packed sequences, int64.

    chunks: (nchunks, 2), of each chunk its first token and one past its last. One that no sequence needs has no tokens.
    segments: (nsegments, 6), of each segment its sequence, its first token, one past its last, its first chunk, its
        first period, and 1 if it is the first of its sequence plus 2 if it is the last. The sequence is −1 where no
        sequence needs the entry.
    sequences: (nseqs + 1,), the segments of all sequences before each, and of all at last.
    """

    chunks: Tensor
    segments: Tensor
    sequences: Tensor


def chunk_table(cu_seqlens: Tensor, plan: Plan) -> ChunkTable:
    """The table of a plan for packed sequences.

    Args:
        cu_seqlens: (nseqs + 1,) int32 or int64, any stride. Whatever the values, all bounds are within the tokens there
            are, and all chunks and segments within the room that the plan gives them.
        plan: how the call is cut.
    """
    nseqs = cu_seqlens.numel() - 1
    table = ChunkTable(
        *(
            torch.empty(shape, dtype=torch.int64, device=cu_seqlens.device)
            for shape in ((plan.nchunks, 2), (plan.nsegments, 6), (nseqs + 1,))
        )
    )
    launch(
        _chunk_table_kernel, (nseqs + 1,),
        cu_seqlens, *table, cu_seqlens.stride(0), *plan.cut, plan.nsegments, nseqs,
        CHUNK=plan.chunk_size, BOUNDS=plan.segment_sizes.bounds, SIZES=plan.segment_sizes.sizes, **CHUNK_TABLE.kwargs,
    )  # fmt: skip
    return table


@triton.jit(do_not_specialize=[*CUT, "nsegments", "nseqs"])
def _chunk_table_kernel(
    cu_seqlens_ptr, chunks_ptr, segments_ptr, sequences_ptr, stride,
    seqlen, period, chunks_per_period, nchunks, nsegments, nseqs,
    CHUNK: tl.constexpr, BOUNDS: tl.constexpr, SIZES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the entries of one sequence, the last program's: those left over. Grid: (nseqs + 1,).

    Each adds up what the sequences before it need by itself.
    """
    sequence = tl.program_id(0).to(tl.int64)
    chunks_before = tl.zeros((), dtype=tl.int64)
    periods_before = tl.zeros((), dtype=tl.int64)
    segments_before = tl.zeros((), dtype=tl.int64)
    for i in range(0, sequence, BLOCK):
        offs = i + tl.arange(0, BLOCK).to(tl.int64)
        start, stop = _sequence_bounds(cu_seqlens_ptr + offs * stride, stride, seqlen, offs < sequence)
        chunks_before += tl.sum(count_chunks(stop - start, period, chunks_per_period, CHUNK))
        periods_before += tl.sum(tl.cdiv(stop - start, period))
        size = _segment_size(stop - start, BOUNDS, SIZES)
        segments_before += tl.sum(tl.where(offs < sequence, tl.maximum(tl.cdiv(stop - start, size), 1), 0))
    tl.store(sequences_ptr + sequence, tl.minimum(segments_before, nsegments))

    is_sequence = sequence < nseqs
    start, stop = _sequence_bounds(cu_seqlens_ptr + sequence * stride, stride, seqlen, is_sequence)
    needed = count_chunks(stop - start, period, chunks_per_period, CHUNK)
    entries = tl.where(is_sequence, needed, nchunks - chunks_before)
    for i in range(0, entries, BLOCK):
        offs = i + tl.arange(0, BLOCK).to(tl.int64)
        in_table = (offs < entries) & (chunks_before + offs < nchunks)
        first, end = cut_chunk(offs, stop - start, period, chunks_per_period, CHUNK)
        ptrs = chunks_ptr + 2 * (chunks_before + offs)
        tl.store(ptrs, start + first, mask=in_table)
        tl.store(ptrs + 1, start + end, mask=in_table)

    size = _segment_size(stop - start, BOUNDS, SIZES)
    needed = tl.maximum(tl.cdiv(stop - start, size), 1)
    entries = tl.where(is_sequence, needed, nsegments - segments_before)
    for i in range(0, entries, BLOCK):
        offs = i + tl.arange(0, BLOCK).to(tl.int64)
        in_table = (offs < entries) & (segments_before + offs < nsegments)
        first = start + offs * size
        end = tl.minimum(first + size, stop)
        first_period = offs * size // period
        chunk = chunks_before + count_chunks(offs * size, period, chunks_per_period, CHUNK)
        has_room = chunk + count_chunks(end - first, period, chunks_per_period, CHUNK) <= nchunks
        end, chunk = tl.where(has_room, end, first), tl.where(has_room, chunk, 0)
        ptrs = segments_ptr + 6 * (segments_before + offs)
        tl.store(ptrs, tl.where(is_sequence & has_room, sequence, -1), mask=in_table)
        tl.store(ptrs + 1, first, mask=in_table)
        tl.store(ptrs + 2, end, mask=in_table)
        tl.store(ptrs + 3, chunk, mask=in_table)
        tl.store(ptrs + 4, periods_before + first_period, mask=in_table)
        tl.store(ptrs + 5, (offs == 0).to(tl.int64) + 2 * (offs == needed - 1).to(tl.int64), mask=in_table)


@triton.jit
def _segment_size(tokens, BOUNDS: tl.constexpr, SIZES: tl.constexpr):
    """Tokens in a segment of sequences of so many."""
    size = tl.full(tokens.shape, SIZES[0], tl.int64)
    for i in tl.static_range(len(BOUNDS)):
        size = tl.where(tokens > BOUNDS[i], SIZES[i + 1], size)
    return size


@triton.jit
def _sequence_bounds(ptrs, stride, seqlen, mask):
    """The first token of sequences and one past their last, both within the tokens there are."""
    start = tl.load(ptrs, mask=mask, other=0).to(tl.int64)
    stop = tl.load(ptrs + stride, mask=mask, other=0).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), seqlen)
    return start, tl.minimum(tl.maximum(stop, start), seqlen)
