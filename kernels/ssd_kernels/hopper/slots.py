"""Where the chunks of a row stand in the workspace: each in a slot of its own, found by arithmetic alone.

A row is one sequence of a batch, or all packed sequences. Its chunks have CHUNK tokens of one sequence, the last of a
sequence fewer. Of a batch, chunk c is in slot c. Of packed sequences, the chunks of sequence s begin at slot
cu_seqlens[s] // CHUNK + s: that leaves room for each, since ⌈n / CHUNK⌉ ≤ ⌊(start + n) / CHUNK⌋ − ⌊start / CHUNK⌋ + 1,
and needs neither a table nor another launch. Some slots stay empty.

Whatever the values of cu_seqlens, all bounds are within the tokens and the slots that there are.
"""

import triton
import triton.language as tl

# The arguments by which a kernel learns the cut. Not specialised, or every new length would compile anew.
CUT = ("seqlen", "nslots", "nseqs")


def count_slots(seqlen: int, nseqs: int | None, chunk: int) -> int:
    """Slots of a row; nseqs of packed sequences."""
    return -(-seqlen // chunk) if nseqs is None else seqlen // chunk + nseqs


@triton.jit
def sequence_bounds(sequence, cu_seqlens_ptr, cu_stride, seqlen):
    """The first token of packed sequences and one past their last, both within the tokens there are."""
    start = tl.load(cu_seqlens_ptr + sequence * cu_stride).to(tl.int64)
    stop = tl.load(cu_seqlens_ptr + (sequence + 1) * cu_stride).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), seqlen)
    return start, tl.minimum(tl.maximum(stop, start), seqlen)


@triton.jit
def slot_bounds(slots, cu_seqlens_ptr, cu_stride, seqlen, nslots, nseqs, CHUNK: tl.constexpr):
    """Of the chunks in `slots` (K,): the first token, the number of tokens, the sequence; 0 and −1 in an empty slot."""
    if cu_seqlens_ptr is None:
        sequence = slots * 0
        first = slots.to(tl.int64) * CHUNK
        count = seqlen - first
    else:
        # The sequences that begin at or before each slot, counted by halving: powers of two are added up.
        step = 1
        while step * 2 <= nseqs:
            step *= 2
        found = slots * 0
        while step > 0:
            tried = found + step - 1
            inside = tried < nseqs
            start = tl.load(cu_seqlens_ptr + tried.to(tl.int64) * cu_stride, mask=inside, other=0).to(tl.int64)
            first_slot = tl.minimum(tl.maximum(start, 0), seqlen) // CHUNK + tried
            found = tl.where(inside & (first_slot <= slots), tried + 1, found)
            step = step // 2
        sequence = tl.maximum(found - 1, 0)
        start, stop = sequence_bounds(sequence.to(tl.int64), cu_seqlens_ptr, cu_stride, seqlen)
        first = start + (slots - (start // CHUNK + sequence)) * CHUNK
        # Not before the start: an entry of cu_seqlens may be wrong.
        count = tl.where(first < start, 0, stop - first)
    count = tl.minimum(tl.maximum(count, 0), CHUNK).to(tl.int32)
    return first, count, tl.where(count > 0, sequence, -1)


@triton.jit
def row_bounds(row, cu_seqlens_ptr, cu_stride, seqlen, CHUNK: tl.constexpr):
    """Of a sequence of the batch, or packed: its first token, one past its last, its first slot and one past its last.

    Tokens and slots are those of its row.
    """
    if cu_seqlens_ptr is None:
        start, stop, first = row * 0, row * 0 + seqlen, row * 0
    else:
        start, stop = sequence_bounds(row, cu_seqlens_ptr, cu_stride, seqlen)
        first = start // CHUNK + row
    return start, stop, first, first + (stop - start + CHUNK - 1) // CHUNK


@triton.jit
def piece_bounds(piece, npieces, first, last, period, RESTART: tl.constexpr, GROUP: tl.constexpr):
    """The slots of one of `npieces` parts of the slots first to last, all as long but the last ones; may be none.

    A part begins where a group of chunks may, at a multiple of GROUP; where the state restarts at every `period` chunks
    of a sequence, with one of them.
    """
    origin = first if RESTART else first // GROUP * GROUP
    step = period if RESTART else GROUP
    size = tl.cdiv(tl.cdiv(last - origin, npieces), step) * step
    begin = tl.minimum(tl.maximum(origin + piece * size, first), last)
    return begin, tl.maximum(tl.minimum(origin + (piece + 1) * size, last), begin)
