"""What several stages share: the bounds of a chunk, decays, and matrix products that keep their operands in range."""

import triton
import triton.language as tl


@triton.jit
def chunk_bounds(chunk, table_ptr, seqlen, period, chunks_per_period, CHUNK: tl.constexpr):
    """The first token of a chunk and one past its last, from the table of packed sequences where there is one.

    Not before the first where an entry of the table is not used.
    """
    if table_ptr is not None:
        first = tl.load(table_ptr + 3 * chunk)
        stop = tl.load(table_ptr + 3 * chunk + 1)
    else:
        first, stop = cut_chunk(chunk, seqlen, period, chunks_per_period, CHUNK)
    return first, stop


@triton.jit
def cut_chunk(chunk, seqlen, period, chunks_per_period, CHUNK: tl.constexpr):
    """The bounds of a chunk of one sequence; it ends with its period at the latest."""
    restart = chunk // chunks_per_period * period
    first = restart + chunk % chunks_per_period * CHUNK
    stop = tl.minimum(tl.minimum(first + CHUNK, restart + period), seqlen)
    return first, stop


@triton.jit
def decay_between(high_to, low_to, high_from, low_from, mask):
    """exp(a_to − a_from), a as a pair of fp32 numbers, so that two large sums may cancel without loss.

    Masked before the exponential: above the diagonal it would overflow.
    """
    return tl.exp(tl.where(mask, (high_to - high_from) + (low_to - low_from), 0.0))


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
