"""What several kernels share: where a chunk and a segment lie, products that keep their operands in range, decay."""

import triton
import triton.language as tl

# Of a state that decays by more, in powers of two, nothing is left beside what is added later.
NEGLIGIBLE = tl.constexpr(40.0)


@triton.jit
def chunk_bounds(chunk, table_ptr, seqlen, period, chunks_per_period, CHUNK: tl.constexpr):
    """The first token of a chunk and one past its last, from the table of packed sequences where there is one.

    Not before the first where an entry of the table is not used.
    """
    if table_ptr is not None:
        first = tl.load(table_ptr + 2 * chunk)
        stop = tl.load(table_ptr + 2 * chunk + 1)
    else:
        first, stop = cut_chunk(chunk, seqlen, period, chunks_per_period, CHUNK)
    return first, stop


@triton.jit
def cut_chunk(chunk, seqlen, period, chunks_per_period, CHUNK: tl.constexpr):
    """The bounds of a chunk of one sequence; it ends with its period at the latest."""
    start = chunk // chunks_per_period * period
    first = start + chunk % chunks_per_period * CHUNK
    stop = tl.minimum(tl.minimum(first + CHUNK, start + period), seqlen)
    return first, stop


@triton.jit
def segment_bounds(row, table_ptr, seqlen, period, chunks_per_period, nchunks, segment, nsegments, nperiods):
    """Where a segment lies: of row `row` of all segments of the batch, or of the table of packed sequences.

    Its sequence, or −1 where an entry of the table is not used; its first token and one past its last; its first chunk,
    of all of the batch; its first period, of all, `nperiods` of a sequence; and whether it is the first of
    its sequence, and the last.
    """
    if table_ptr is not None:
        entry = table_ptr + 6 * row
        sequence = tl.load(entry)
        first = tl.load(entry + 1)
        stop = tl.load(entry + 2)
        chunk = tl.load(entry + 3)
        first_period = tl.load(entry + 4)
        edges = tl.load(entry + 5)
        opens, closes = edges % 2 == 1, edges >= 2
    else:
        sequence = row // nsegments
        index = row % nsegments
        first = index * segment
        stop = tl.minimum(first + segment, seqlen)
        first_period = index * (segment // period)
        chunk = sequence * nchunks + first_period * chunks_per_period
        first_period += sequence * nperiods
        opens, closes = index == 0, index == nsegments - 1
    return sequence, first, stop, chunk, first_period, opens, closes


@triton.jit
def count_chunks(tokens, period, chunks_per_period, CHUNK: tl.constexpr):
    """Chunks in that many tokens, counted from the start of a period."""
    return tokens // period * chunks_per_period + tl.cdiv(tokens % period, CHUNK)


@triton.jit
def load(ptrs, in_rows, in_columns):
    """A tile, zero outside."""
    return tl.load(ptrs, mask=in_rows[:, None] & in_columns[None, :], other=0.0)


@triton.jit
def dot(a, b, acc, DTYPE: tl.constexpr):
    """Acc + a b for operands that hold values of DTYPE, or fp32 values to be rounded to its precision.

    fp16 products run as tf32: the same ten bits of mantissa, and the range of fp32, which decayed weights and states
    need. Rounded here because tensor cores truncate.
    """
    if tl.bfloat16 == DTYPE:
        acc = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc, input_precision="ieee")
    elif tl.float16 == DTYPE:
        acc = tl.dot(_round_to_tf32(a), _round_to_tf32(b), acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def _round_to_tf32(a):
    bits = a.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
