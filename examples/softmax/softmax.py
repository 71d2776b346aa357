"""Softmax of each row, which reads and writes memory once.

out[i, j] = exp(x[i, j] - max(x[i])) / sum(exp(x[i] - max(x[i])))

Reference: `torch.softmax` in fp64.
"""

import torch
import triton
import triton.language as tl


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension.

    Args:
        x: (rows, columns), contiguous, of a floating dtype. A row has to fit into one program's registers.

    Returns:
        (rows, columns), of the dtype of x.

    Raises:
        ValueError: x is not a contiguous matrix.
    """
    if x.dim() != 2 or not x.is_contiguous():
        raise ValueError(f"x: expected a contiguous matrix, found shape {tuple(x.shape)} and strides {x.stride()}")
    rows, columns = x.shape
    out = torch.empty_like(x)
    _softmax_kernel[(rows,)](x, out, columns, BLOCK=triton.next_power_of_2(columns), num_warps=8)
    return out


@triton.jit
def _softmax_kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    """One program makes one row; the grid is (rows,)."""
    start = tl.program_id(0).to(tl.int64) * columns
    offs = tl.arange(0, BLOCK)
    in_row = offs < columns
    x = tl.load(x_ptr + start + offs, mask=in_row, other=float("-inf")).to(tl.float32)  # (BLOCK,)
    numerator = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + start + offs, numerator / tl.sum(numerator, axis=0), mask=in_row)
