"""What the scan needs of each chunk beside x, B and C: products that all heads share, and decays in factors.

In a chunk, with a_i the running sum of dt · A in units of log 2 and m the middle of its range,

    CB_ij = C_i · B_j for j ≤ i        u_i = 2^(a_i − m)        w_j = dt_j 2^(m − a_j)

so that the scan computes y_i = u_i [S' C_i + Σ_j CB_ij (w_j x_j)] with S' the state scaled by 2^m, and adds the same
w_j x_j to the state: nothing is computed for each pair of tokens and each head. Where the decay of a group of chunks
spans at most 2^GROUP_RANGE, they share an m and the state is scaled once for all. Where that of one chunk spans more
than 2^RANGE, its factors would leave the range of fp32: the scan takes the running sums themselves ("steep" chunks).

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: tests/correctness/hopper_model.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from ssd_kernels.hopper import configs
from ssd_kernels.hopper.configs import CHUNK, GROUP, RANGE, STEEP_STEP, STEEP_UNIT, prepare_config
from ssd_kernels.hopper.slots import CUT, slot_bounds
from ssd_kernels.interface import Sizes
from ssd_kernels.launching import launch
from ssd_kernels.portable.activations import softplus

# What stands in a row of `exponents`, for each chunk and head, in units of log 2.
EXPONENTS = 8
TOTAL, OPENING, CLOSING, TO_END, STEEP = (tl.constexpr(i) for i in range(5))


class Prepared(NamedTuple):
    """What :func:`prepare` makes; rows are those of (batch, nheads, nslots).

    CB: (batch, nslots, ngroups, CHUNK, CHUNK) in the dtype of B.
    factors: (batch, nheads, nslots, 4 · CHUNK) bf16: w rounded, what that rounding left, and u, in fp32. Of a steep
        chunk w_j is dt_j 2^(a_last − a_j), and in place of u stands a as an integer, in units of STEEP_UNIT.
    exponents: (batch, nheads, nslots, EXPONENTS) fp32: TOTAL, a of the last token; OPENING and CLOSING, by which the
        state is scaled before and after the chunk; TO_END, by which w is, so that it decays to the end of the chunk;
        STEEP, 1 of a steep chunk and else 0.
    steps: (batch, nheads, nslots, CHUNK) fp32, dt of steep chunks; of others it is not written.
    tails: (1, nseqs · CHUNK, ngroups, d_state) in the dtype of B, the last chunk of each packed sequence, if not whole,
        with zeros after it; or None.
    """

    CB: Tensor
    factors: Tensor
    exponents: Tensor
    steps: Tensor
    tails: Tensor | None


def prepare(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor | None, dt_softplus: bool,
    dt_limit: tuple[float, float], cu_seqlens: Tensor | None, sizes: Sizes, nslots: int,
) -> Prepared:  # fmt: skip
    """Fill what :class:`Prepared` says; arguments as of :class:`ssd_kernels.interface.SSD`, any strides."""
    rows = (sizes.batch, sizes.nheads, nslots)
    CB = torch.empty((sizes.batch, nslots, sizes.ngroups, CHUNK, CHUNK), dtype=B.dtype, device=B.device)
    factors = torch.empty((*rows, 4 * CHUNK), dtype=torch.bfloat16, device=B.device)
    exponents = torch.empty((*rows, EXPONENTS), dtype=torch.float32, device=B.device)
    steps = torch.empty((*rows, CHUNK), dtype=torch.float32, device=B.device)
    tails = None
    if sizes.nseqs is not None:
        tails = torch.empty((1, sizes.nseqs * CHUNK, sizes.ngroups, sizes.d_state), dtype=B.dtype, device=B.device)
    config = prepare_config()
    products = nslots * sizes.ngroups
    blocks = -(-nslots // GROUP) * -(-sizes.nheads // config.block["BLOCK_H"])
    launch(
        _prepare_kernel, (sizes.batch * (products + blocks),),
        dt, A, dt_bias, B, C, CB, (factors, factors.view(torch.float32)), exponents, steps, tails,
        (dt.stride(), A.stride(0), 0 if dt_bias is None else dt_bias.stride(0), B.stride(), C.stride()), *dt_limit,
        cu_seqlens, 0 if cu_seqlens is None else cu_seqlens.stride(0),
        sizes.seqlen, nslots, sizes.nseqs or 0, sizes.batch, sizes.nheads, sizes.ngroups,
        SOFTPLUS=dt_softplus, D_STATE=sizes.d_state, CHUNK=CHUNK, GROUP=GROUP,
        GROUP_RANGE=configs.GROUP_RANGE, EARLY_START=configs.EARLY_START, **config.kwargs,
    )  # fmt: skip
    return Prepared(CB, factors, exponents, steps, tails)


@triton.jit(do_not_specialize=[*CUT, "batch_size", "nheads", "ngroups", "dt_low", "dt_high"])
def _prepare_kernel(
    dt_ptr, A_ptr, dt_bias_ptr, B_ptr, C_ptr, CB_ptr, factors_ptrs, exponents_ptr, steps_ptr, tails_ptr,
    strides, dt_low, dt_high, cu_seqlens_ptr, cu_stride, seqlen, nslots, nseqs,
    batch_size, nheads, ngroups,
    SOFTPLUS: tl.constexpr, D_STATE: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    GROUP_RANGE: tl.constexpr, EARLY_START: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: CB of one chunk and group; or, after those, the decays of GROUP chunks and BLOCK_H heads.

    Grid: (batch · (nslots · ngroups + groups of slots · blocks of heads),). `strides` are those of dt, A, dt_bias, B
    and C.
    """
    if EARLY_START:
        gdc_launch_dependents()
    products = nslots * ngroups
    cut = (cu_seqlens_ptr, cu_stride, seqlen, nslots, nseqs)
    if tl.program_id(0) < batch_size * products:
        _products(
            tl.program_id(0), B_ptr, C_ptr, CB_ptr, tails_ptr, strides[3], strides[4], cut, ngroups,
            D_STATE, CHUNK, BLOCK_S,
        )  # fmt: skip
    else:
        _decays(
            tl.program_id(0) - batch_size * products, dt_ptr, A_ptr, dt_bias_ptr, strides, dt_low, dt_high,
            factors_ptrs, exponents_ptr, steps_ptr, cut, nheads, SOFTPLUS, CHUNK, GROUP, GROUP_RANGE, BLOCK_H, BLOCK_S,
        )  # fmt: skip


@triton.jit
def _products(
    pid, B_ptr, C_ptr, CB_ptr, tails_ptr, B_strides, C_strides, cut, ngroups,
    D_STATE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """CB of one chunk and group, zero above the diagonal and after the chunk's last token; and its tail."""
    cu_seqlens_ptr, cu_stride, seqlen, nslots, nseqs = cut
    group = (pid % ngroups).to(tl.int64)
    batch = (pid // (nslots * ngroups)).to(tl.int64)
    slots = pid // ngroups % nslots + tl.arange(0, 1)
    first, count, sequence = slot_bounds(slots, cu_seqlens_ptr, cu_stride, seqlen, nseqs, CHUNK, BLOCK_S)
    offs_q = tl.arange(0, CHUNK)
    offs_n = tl.arange(0, D_STATE)
    in_q = offs_q < count
    tokens = first + offs_q
    B_ptrs = B_ptr + batch * B_strides[0] + group * B_strides[2] + tokens[:, None] * B_strides[1]
    C_ptrs = C_ptr + batch * C_strides[0] + group * C_strides[2] + tokens[:, None] * C_strides[1]
    B = tl.load(B_ptrs + offs_n[None, :] * B_strides[3], mask=in_q[:, None], other=0.0)  # (Q, N)
    C = tl.load(C_ptrs + offs_n[None, :] * C_strides[3], mask=in_q[:, None], other=0.0)  # (Q, N)
    CB = tl.dot(C, tl.trans(B), input_precision="ieee")
    CB = tl.where((offs_q[:, None] >= offs_q[None, :]) & in_q[:, None], CB, 0.0)
    CB_ptrs = CB_ptr + pid.to(tl.int64) * (CHUNK * CHUNK) + offs_q[:, None] * CHUNK + offs_q[None, :]
    tl.store(CB_ptrs, CB.to(CB_ptr.dtype.element_ty))
    if tails_ptr is not None:
        rows = (sequence.to(tl.int64) * CHUNK + offs_q) * ngroups + group
        partial = (count > 0) & (count < CHUNK) & (offs_q >= 0)
        tl.store(tails_ptr + rows[:, None] * D_STATE + offs_n[None, :], B, mask=partial[:, None])


@triton.jit
def _decays(
    pid, dt_ptr, A_ptr, dt_bias_ptr, strides, dt_low, dt_high, factors_ptrs, exponents_ptr, steps_ptr, cut, nheads,
    SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, GROUP_RANGE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The steps of GROUP chunks and BLOCK_H heads, and what follows from them."""
    cu_seqlens_ptr, cu_stride, seqlen, nslots, nseqs = cut
    dt_strides = strides[0]
    blocks = tl.cdiv(nheads, BLOCK_H)
    groups = tl.cdiv(nslots, GROUP)
    batch = (pid // (blocks * groups)).to(tl.int64)
    slots = pid // blocks % groups * GROUP + tl.arange(0, GROUP)
    first, count, sequence = slot_bounds(slots, cu_seqlens_ptr, cu_stride, seqlen, nseqs, CHUNK, BLOCK_S)
    offs_h = (pid % blocks * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
    offs_q = tl.arange(0, CHUNK)
    in_h = offs_h < nheads
    in_chunk = (offs_q[None, :] < count[:, None])[None, :, :] & in_h[:, None, None]
    dt_ptrs = dt_ptr + batch * dt_strides[0] + ((first[:, None] + offs_q[None, :]) * dt_strides[1])[None, :, :]
    dt = tl.load(dt_ptrs + (offs_h * dt_strides[2])[:, None, None], mask=in_chunk, other=0.0).to(tl.float32)
    A = tl.load(A_ptr + offs_h * strides[1], mask=in_h, other=0.0).to(tl.float32) * 1.4426950408889634
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + offs_h * strides[2], mask=in_h, other=0.0).to(tl.float32)[:, None, None]
    if SOFTPLUS:
        dt = softplus(dt)
    dt = tl.where(dt < dt_low, dt_low, dt)  # comparisons, not minimum and maximum: a NaN stays
    dt = tl.where(dt > dt_high, dt_high, dt)
    dt = tl.where(in_chunk, dt, 0.0)  # (H, G, Q)
    rows = (batch * nheads + offs_h)[:, None] * nslots + slots[None, :]
    in_rows = in_h[:, None] & (slots < nslots)[None, :]
    _store_decays(dt, A, sequence, rows, in_rows, factors_ptrs, exponents_ptr, steps_ptr, CHUNK, GROUP, GROUP_RANGE)


@triton.jit
def _store_decays(
    dt,
    A,
    sequence,
    rows,
    in_rows,
    factors_ptrs,
    exponents_ptr,
    steps_ptr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_RANGE: tl.constexpr,
):
    """The factors and exponents of GROUP chunks of some heads: dt (H, G, Q) is zero after a chunk's last token."""
    offs_g = tl.arange(0, GROUP)
    offs_q = tl.arange(0, CHUNK)
    dA = dt * A[:, None, None]
    a = tl.cumsum(dA, 2)
    total = tl.sum(tl.where((offs_q == CHUNK - 1)[None, None, :], a, 0.0), 2)  # (H, G)
    low = tl.minimum(tl.min(a, 2), 0.0)
    high = tl.maximum(tl.max(a, 2), 0.0)
    flat = (high - low <= RANGE) & (total == total)  # false of a NaN, too

    # Chunks of one sequence in a group share the scale, if all together keep within range.
    together = sequence[:, None] == sequence[None, :]  # (G, G)
    before = together & (offs_g[:, None] > offs_g[None, :])
    opens = tl.max(before.to(tl.int32), 1) == 0
    closes = tl.max((together & (offs_g[:, None] < offs_g[None, :])).to(tl.int32), 1) == 0
    start = tl.sum(tl.where(before[None, :, :], total[:, None, :], 0.0), 2)  # (H, G), a before the chunk
    group_low = tl.min(tl.where(together[None, :, :], (start + low)[:, None, :], 0.0), 2)
    group_high = tl.max(tl.where(together[None, :, :], (start + high)[:, None, :], 0.0), 2)
    steep_together = tl.max(tl.where(together[None, :, :], (flat == 0).to(tl.int32)[:, None, :], 0), 2)
    shared = (steep_together == 0) & (group_high - group_low <= GROUP_RANGE)
    middle = tl.where(shared, (group_low + group_high) * 0.5 - start, (low + high) * 0.5)
    middle = tl.where(flat, middle, 0.0)
    opening = tl.where(shared & (opens == 0)[None, :], 0.0, middle)
    closing = tl.where(shared & (closes == 0)[None, :], 0.0, total - middle)

    factor_rows = (rows * (4 * CHUNK))[:, :, None] + offs_q[None, None, :]
    u_rows = (rows * (2 * CHUNK) + CHUNK)[:, :, None] + offs_q[None, None, :]
    in_flat = (in_rows & flat)[:, :, None]
    exponent = tl.where(flat[:, :, None], a - middle[:, :, None], 0.0)
    _store_in_two(factors_ptrs[0] + factor_rows, dt * tl.exp2(-exponent), in_flat, CHUNK)
    tl.store(factors_ptrs[1] + u_rows, tl.exp2(exponent), mask=in_flat)
    steep = in_rows & (flat == 0)
    if tl.max(steep.to(tl.int32)) > 0:
        # Integers, so that two long sums may cancel exactly; a step beyond what fp32 can hold is as good as the bound.
        bounded = tl.minimum(tl.maximum(tl.where(dA == dA, dA, 0.0), -STEEP_STEP), STEEP_STEP)
        exact = tl.cumsum(tl.floor(bounded / STEEP_UNIT + 0.5).to(tl.int32), 2)
        last = tl.sum(tl.where((offs_q == CHUNK - 1)[None, None, :], exact, 0), 2)
        w = dt * tl.exp2((last[:, :, None] - exact).to(tl.float32) * STEEP_UNIT)
        _store_in_two(factors_ptrs[0] + factor_rows, w, steep[:, :, None], CHUNK)
        tl.store(factors_ptrs[1] + u_rows, exact.to(tl.float32, bitcast=True), mask=steep[:, :, None])
        tl.store(steps_ptr + (rows * CHUNK)[:, :, None] + offs_q[None, None, :], dt, mask=steep[:, :, None])
        steep_total = last.to(tl.float32) * STEEP_UNIT
        total = tl.where(flat, total, steep_total)
        opening = tl.where(flat, opening, steep_total)
        closing = tl.where(flat, closing, 0.0)
    exponents_ptrs = exponents_ptr + rows * 8
    tl.store(exponents_ptrs + TOTAL, total, mask=in_rows)
    tl.store(exponents_ptrs + OPENING, opening, mask=in_rows)
    tl.store(exponents_ptrs + CLOSING, closing, mask=in_rows)
    tl.store(exponents_ptrs + TO_END, tl.where(flat, total - middle, 0.0), mask=in_rows)
    tl.store(exponents_ptrs + STEEP, (flat == 0).to(tl.float32), mask=in_rows)


@triton.jit
def _store_in_two(ptrs, w, mask, CHUNK: tl.constexpr):
    """W to 16 bits, as two bf16 numbers, CHUNK apart."""
    high = w.to(tl.bfloat16)
    tl.store(ptrs, high, mask=mask)
    tl.store(ptrs + CHUNK, (w - high.to(tl.float32)).to(tl.bfloat16), mask=mask)
