"""The decays of the scan's chunks, in factors: what a program of :mod:`ssd_kernels.hopper.prepare` makes of dt.

Plain Triton, but for the layouts: where LAYOUT is None, in Triton's interpreter, there are none.
"""

import triton
import triton.language as tl
from triton.experimental.gluon import language as gl

from ssd_kernels.hopper.configs import NEGLIGIBLE, RANGE, STEEP_STEP, STEEP_UNIT
from ssd_kernels.hopper.layouts import load_layout, rows_layout, span
from ssd_kernels.hopper.slots import slot_bounds

# What stands in a row of `exponents`, for each chunk and head, in units of log 2.
EXPONENTS = 8
TOTAL, OPENING, CLOSING, TO_END, STEEP, BETWEEN = (tl.constexpr(i) for i in range(6))


@triton.jit
def store_decays(
    block, batch, slot, cut, dt_ptr, A_ptr, dt_bias_ptr, strides, dt_low, dt_high, outputs, nheads,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, GROUP_RANGE: tl.constexpr, BLOCK_H: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Factors, exponents and, where steep, steps of the GROUP chunks from `slot` on and BLOCK_H heads.

    `cut`: the arguments of :func:`ssd_kernels.hopper.slots.slot_bounds`. `strides`: of dt, A and dt_bias. `outputs`:
    factors as bf16 and as fp32, exponents, steps. WARPS: of the program; 0 in the interpreter.
    """
    LAYOUT: tl.constexpr = rows_layout(BLOCK_H, CHUNK, WARPS)
    exponents_ptr = outputs[2]
    dt = _load(block, batch, slot, cut, dt_ptr, strides[0], nheads, CHUNK, GROUP, BLOCK_H, WARPS)
    slots = slot + span(GROUP, 1, LAYOUT)
    _, count, sequence = slot_bounds(slots, *cut, CHUNK)
    nslots = cut[3]
    offs_h = (block * BLOCK_H + span(BLOCK_H, 0, LAYOUT)).to(tl.int64)
    in_h = offs_h < nheads
    offs_q = span(CHUNK, 2, LAYOUT)[None, None, :]
    in_chunk = offs_q < count[None, :, None]  # (1, G, Q)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + offs_h * strides[2], mask=in_h, other=0.0).to(tl.float32)[:, None, None]
    if SOFTPLUS:
        dt = _softplus(dt)
    dt = tl.maximum(dt, dt_low, propagate_nan=tl.PropagateNan.ALL)
    dt = tl.minimum(dt, dt_high, propagate_nan=tl.PropagateNan.ALL)
    dt = tl.where(in_chunk, dt, 0.0)  # (H, G, Q)
    A = tl.load(A_ptr + offs_h * strides[1], mask=in_h, other=0.0).to(tl.float32) * 1.4426950408889634
    dA = dt * A[:, None, None]
    a = tl.cumsum(dA, 2)
    total = tl.sum(dA, 2)  # (H, G)
    low = tl.minimum(tl.min(a, 2), 0.0)
    high = tl.maximum(tl.max(a, 2), 0.0)
    flat = (high - low <= RANGE) & (total == total)  # false of a NaN, too
    middle, opening, closing = _scales(total, low, high, flat, sequence, GROUP, GROUP_RANGE, LAYOUT)

    rows = (batch * nheads + offs_h)[:, None] * nslots + slots[None, :]
    in_rows = in_h[:, None] & (slots < nslots)[None, :]
    to_end = tl.where(flat, total - middle, 0.0)
    second = middle
    between = to_end * 0.0  # of its layout, and no NaN: beyond the range, to_end is zero
    in_first = offs_q < CHUNK // 2
    beyond = in_rows & (flat == 0)
    any_beyond = tl.max(tl.max(beyond.to(tl.int32), 1), 0) > 0
    if any_beyond:
        of_first, of_second, fit = _middles_of_halves(a, in_first, offs_q, CHUNK)
        halved = beyond & fit & (total == total)
        middle = tl.where(halved, of_first, middle)
        second = tl.where(halved, of_second, second)
        opening = tl.where(halved, middle, opening)
        closing = tl.where(halved, total - second, closing)
        to_end = tl.where(halved, total - second, to_end)
        between = tl.where(halved, second - middle, 0.0)
        flat = flat | halved
    within = tl.where(flat[:, :, None], a - tl.where(in_first, middle[:, :, None], second[:, :, None]), 0.0)
    _store_factors(dt, within, outputs, rows, in_rows & flat, offs_q, CHUNK)
    if any_beyond:
        steep = in_rows & (flat == 0)
        if tl.max(tl.max(steep.to(tl.int32), 1), 0) > 0:
            last = _store_steep(dt, A, outputs, rows, steep, offs_q, CHUNK)
            total = tl.where(flat, total, last)
            opening = tl.where(flat, opening, last)
            closing = tl.where(flat, closing, 0.0)
    _store_exponents(exponents_ptr, rows, in_rows, total, opening, closing, to_end, flat, between, LAYOUT)


@triton.jit
def _load(
    block, batch, slot, cut, dt_ptr, strides, nheads,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, BLOCK_H: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """The elements of dt (H, G, Q), heads side by side as they lie; then so that a warp has whole chunks of a head."""
    LOADED: tl.constexpr = load_layout(BLOCK_H, GROUP, WARPS)
    offs_h = (block * BLOCK_H + span(BLOCK_H, 0, LOADED)).to(tl.int64)
    offs_q = span(CHUNK, 2, LOADED)[None, None, :]
    first, count, _ = slot_bounds(slot + span(GROUP, 1, LOADED), *cut, CHUNK)
    ptrs = dt_ptr + batch * strides[0] + (first[None, :, None] + offs_q) * strides[1]
    mask = (offs_q < count[None, :, None]) & (offs_h < nheads)[:, None, None]
    dt = tl.load(ptrs + (offs_h * strides[2])[:, None, None], mask=mask, other=0.0)
    if LOADED is not None:
        dt = gl.convert_layout(dt, rows_layout(BLOCK_H, CHUNK, WARPS))
    return dt.to(tl.float32)


@triton.jit
def _softplus(x):
    """log(1 + e^x), as max(x, 0) + log(1 + e) with e = e^−|x|; a relative error of 2^-16 at most, at x = −87.

    log(1 + e) / e by a polynomial whose relative error is below 2^-21, so that nothing is lost as e vanishes.
    """
    e = tl.exp2(tl.abs(x) * -1.4426950408889634)
    series = -0.0085391998 * e + 0.0440896004
    series = series * e - 0.1076816693
    series = series * e + 0.1774523854
    series = series * e - 0.2449546158
    series = series * e + 0.3327547908
    series = series * e - 0.4999740422
    series = series * e + 0.9999998212
    return tl.maximum(x, 0.0) + e * series


@triton.jit
def _scales(total, low, high, flat, sequence, GROUP: tl.constexpr, GROUP_RANGE: tl.constexpr, LAYOUT: tl.constexpr):
    """The middle of each chunk's range, and what opens and closes it, (H, G).

    Chunks of one sequence in a group share the scale, if all together keep within range.
    """
    this, other = span(GROUP, 1, LAYOUT)[None, :, None], span(GROUP, 2, LAYOUT)[None, None, :]
    others = sequence
    if LAYOUT is not None:
        others = gl.convert_layout(sequence, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))
    together = sequence[None, :, None] == others[None, None, :]  # (1, G, G)
    opens = tl.max((together & (this > other)).to(tl.int32), 2) == 0  # (1, G)
    closes = tl.max((together & (this < other)).to(tl.int32), 2) == 0
    start = tl.sum(tl.where(together & (this > other), _of_others(total, LAYOUT), 0.0), 2)  # (H, G), a before the chunk
    # A steep chunk is out of range, whatever else there is.
    lowest = tl.where(flat, start + low, float("-inf"))
    group_low = tl.min(tl.where(together, _of_others(lowest, LAYOUT), 0.0), 2)
    group_high = tl.max(tl.where(together, _of_others(start + high, LAYOUT), 0.0), 2)
    shared = group_high - group_low <= GROUP_RANGE
    middle = tl.where(shared, (group_low + group_high) * 0.5 - start, (low + high) * 0.5)
    middle = tl.where(flat, middle, 0.0)
    opening = tl.where(shared & (opens == 0), 0.0, middle)
    closing = tl.where(shared & (closes == 0), 0.0, total - middle)
    return middle, opening, closing


@triton.jit
def _of_others(v, LAYOUT: tl.constexpr):
    """(H, G) as (H, 1, G)."""
    if LAYOUT is not None:
        v = gl.convert_layout(v, gl.SliceLayout(1, LAYOUT))
    return v[:, None, :]


@triton.jit
def _middles_of_halves(a, in_first, offs_q, CHUNK: tl.constexpr):
    """The middle of the range of each half, (H, G), and whether the factors stand both, far enough from each other."""
    low = tl.minimum(tl.min(tl.where(in_first, a, 0.0), 2), 0.0)
    high = tl.maximum(tl.max(tl.where(in_first, a, 0.0), 2), 0.0)
    # The second begins where the first ends, as a chunk does at zero.
    end = tl.sum(tl.where(offs_q == CHUNK // 2 - 1, a, 0.0), 2)
    rest_low = tl.minimum(tl.min(tl.where(in_first, float("inf"), a), 2), end)
    rest_high = tl.maximum(tl.max(tl.where(in_first, float("-inf"), a), 2), end)
    # An even number apart, so that half of it is the exponent of a number that multiplies without rounding.
    apart = 2.0 * tl.floor((rest_low + rest_high - low - high) * 0.25)
    fit = (high - low <= RANGE) & (rest_high - rest_low <= RANGE) & (apart <= -NEGLIGIBLE)
    first = (low + high) * 0.5
    return first, first + apart, fit


@triton.jit
def _store_factors(dt, within, outputs, rows, mask, offs_q, CHUNK: tl.constexpr):
    """Of chunks that are not steep; `within`: a less the middle."""
    factors_ptr, u_ptr, _, _ = outputs
    mask = mask[:, :, None] & (offs_q >= 0)
    tl.store(u_ptr + (rows * (2 * CHUNK) + CHUNK)[:, :, None] + offs_q, tl.exp2(within), mask=mask)
    _store_in_two(factors_ptr + (rows * (4 * CHUNK))[:, :, None] + offs_q, dt * tl.exp2(-within), mask, CHUNK)


@triton.jit
def _store_steep(dt, A, outputs, rows, steep, offs_q, CHUNK: tl.constexpr):
    """Factors and steps of steep chunks; the sum of each chunk, (H, G)."""
    factors_ptr, u_ptr, _, steps_ptr = outputs
    mask = steep[:, :, None] & (offs_q >= 0)
    dA = dt * A[:, None, None]
    # Integers, so that two long sums may cancel exactly; a step beyond what fp32 can hold is as good as the bound.
    bounded = tl.minimum(tl.maximum(tl.where(dA == dA, dA, 0.0), -STEEP_STEP), STEEP_STEP)
    units = tl.floor(bounded / STEEP_UNIT + 0.5).to(tl.int32)
    last = tl.sum(units, 2)
    exact = tl.cumsum(units, 2)
    bits = exact.to(tl.float32, bitcast=True)
    tl.store(u_ptr + (rows * (2 * CHUNK) + CHUNK)[:, :, None] + offs_q, bits, mask=mask)
    w = dt * tl.exp2((last[:, :, None] - exact).to(tl.float32) * STEEP_UNIT)
    _store_in_two(factors_ptr + (rows * (4 * CHUNK))[:, :, None] + offs_q, w, mask, CHUNK)
    tl.store(steps_ptr + (rows * CHUNK)[:, :, None] + offs_q, dt, mask=mask)
    return last.to(tl.float32) * STEEP_UNIT


@triton.jit
def _store_in_two(ptrs, w, mask, CHUNK: tl.constexpr):
    """W to 16 bits, as two bf16 numbers, CHUNK apart."""
    # Rounded by bits: converted one by one and back, each would take a slow instruction.
    high = ((w.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
    tl.store(ptrs, high.to(tl.bfloat16), mask=mask)
    tl.store(ptrs + CHUNK, (w - high).to(tl.bfloat16), mask=mask)


@triton.jit
def _store_exponents(
    exponents_ptr, rows, in_rows, total, opening, closing, to_end, flat, between, LAYOUT: tl.constexpr
):
    """Whole rows at once."""
    i = span(8, 2, LAYOUT)[None, None, :]
    values = tl.where(i == TOTAL, total[:, :, None], 0.0)
    values = tl.where(i == OPENING, opening[:, :, None], values)
    values = tl.where(i == CLOSING, closing[:, :, None], values)
    values = tl.where(i == TO_END, to_end[:, :, None], values)
    values = tl.where(i == STEEP, (flat == 0).to(tl.float32)[:, :, None], values)
    values = tl.where(i == BETWEEN, between[:, :, None], values)
    tl.store(exponents_ptr + (rows * 8)[:, :, None] + i, values, mask=in_rows[:, :, None])
