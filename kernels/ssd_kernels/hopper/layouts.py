"""How the tiles of the preparation lie in registers; in Triton's interpreter, where there are 0 warps, nowhere."""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def rows_layout(heads, chunk, warps):
    """Of (heads, chunks, tokens of one): a thread has some adjacent tokens of all chunks of a head, a warp all."""
    if not warps:
        return None
    lanes = 32 * warps // heads
    return gl.BlockedLayout([1, 1, chunk // lanes], [32 // lanes, 1, lanes], [warps, 1, 1], [2, 0, 1])


@gluon.constexpr_function
def load_layout(heads, chunks, warps):
    """Of the same as dt lies: a thread has adjacent heads of some tokens."""
    if not warps:
        return None
    adjacent = min(heads, 8)
    lanes = heads // adjacent
    across = min(chunks, warps)
    return gl.BlockedLayout([adjacent, 1, 1], [lanes, 1, 32 // lanes], [1, across, warps // across], [0, 2, 1])


@gluon.constexpr_function
def matrix_layout(columns, warps):
    """Of a matrix whose rows are contiguous: a thread has eight adjacent elements."""
    if not warps:
        return None
    lanes = min(32, columns // 8)
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [warps, 1], [1, 0])


@triton.jit
def span(count: tl.constexpr, axis: tl.constexpr, LAYOUT: tl.constexpr):
    """0, 1, … along one axis of a tile."""
    return tl.arange(0, count) if LAYOUT is None else gl.arange(0, count, layout=_along(axis, LAYOUT))


@gluon.constexpr_function
def _along(axis, layout):
    for other in reversed(range(len(layout.order))):
        if other != axis:
            layout = gl.SliceLayout(other, layout)
    return layout
