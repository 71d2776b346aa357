"""A kernel for the tests that need one compiled: Triton reads its source from a file."""

import triton
import triton.language as tl


@triton.jit
def _increment(x_ptr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs) + 1)
