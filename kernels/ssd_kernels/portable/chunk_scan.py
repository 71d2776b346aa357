"""The walk over the chunks of each segment, the state in registers: outputs, final states, states at chunk ends.

What is done with a chunk stands in :mod:`ssd_kernels.portable.walk`.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from ssd_kernels.device import is_hopper, multiprocessors, starts_early
from ssd_kernels.launching import launch
from ssd_kernels.portable.chunk_cumsum import FACTORS, VECTORS
from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import Config, chunk_scan_config, tile_size
from ssd_kernels.portable.plan import CUT, SEGMENTS, Plan
from ssd_kernels.portable.prepare import Prepared
from ssd_kernels.portable.tiles import count_chunks, cut_chunk, load, segment_bounds
from ssd_kernels.portable.walk import alike, factors, forgotten, no_outputs, walk_chunk, write_plain


def chunk_scan(
    x: Tensor, B: Tensor, C: Tensor, D: Tensor | None, prepared: Prepared, initial_state: Tensor | None,
    entering: Tensor | None, chunk_states: Tensor | None, plan: Plan, table: ChunkTable | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y, (batch, seqlen, nheads, headdim) contiguous, of the dtype of x; and the final state.

    Args:
        x: (batch, seqlen, nheads, headdim), any strides.
        B: (batch, seqlen, ngroups, d_state), any strides.
        C: as B.
        D: (nheads,) or (nheads, headdim), any strides; or None.
        prepared: what is known of every chunk.
        initial_state: (batch or nseqs, nheads, headdim, d_state) fp32, any strides; or None, zero.
        entering: (segments, nheads, headdim, d_state) fp32 contiguous, the states that enter every segment but the
            first of its sequence; or None, zero.
        chunk_states: (batch, periods, nheads, headdim, d_state) fp32 contiguous, to be filled with the states after
            every period; or None.
        plan: how the call is cut.
        table: where packed sequences are cut.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_state = torch.empty(plan.sizes.state_shape, dtype=torch.float32, device=x.device)
    _launch(x, B, C, D, prepared, initial_state, entering, y, final_state, None, chunk_states, plan, table)
    return y, final_state


def segment_states(
    x: Tensor, B: Tensor, prepared: Prepared, plan: Plan, table: ChunkTable | None
) -> tuple[Tensor, Tensor]:
    """What every segment but the last of its sequence adds to the state, by the same walk from zero; and its decay.

    (segments, nheads, headdim, d_state) fp32, segments being those of all sequences; and (segments, nheads) fp32,
    the octaves by which a state that enters one has decayed at its end.
    """
    sizes = plan.sizes
    shape = (sizes.batch * plan.nsegments, *sizes.state_shape[1:])
    states = torch.empty(shape, dtype=torch.float32, device=x.device)
    decays = torch.empty(shape[:2], dtype=torch.float32, device=x.device)
    _launch(x, B, B, None, prepared, None, None, None, states, decays, None, plan, table)
    return states, decays


def _launch(
    x: Tensor, B: Tensor, C: Tensor, D: Tensor | None, prepared: Prepared, initial_state: Tensor | None,
    entering: Tensor | None, y: Tensor | None, states: Tensor, decays: Tensor | None, chunk_states: Tensor | None,
    plan: Plan, table: ChunkTable | None,
) -> None:  # fmt: skip
    sizes = plan.sizes
    rows = sizes.batch * plan.nsegments
    config = chunk_scan_config(
        x.dtype, plan.chunk_size, sizes.headdim, sizes.d_state, rows * sizes.nheads, x.device,
        every_state=chunk_states is not None,
    )  # fmt: skip
    tiles = sizes.nheads * triton.cdiv(sizes.headdim, config.block["BLOCK_P"])
    strides = (
        x.stride(), B.stride(), C.stride(), (0,) if D is None else D.stride(),
        (0, 0, 0, 0) if initial_state is None else initial_state.stride(),
    )  # fmt: skip
    early = _starts_early(plan, config, rows * tiles, x.device)
    launch(
        _chunk_scan_kernel, (rows * tiles,),
        x, B, C, D, *prepared, initial_state, entering, y, states, decays, chunk_states, strides,
        None if table is None else table.segments, *plan.cut, *plan.segments,
        0 if chunk_states is None else chunk_states.shape[1],
        NHEADS=sizes.nheads, NGROUPS=sizes.ngroups, HEADDIM=sizes.headdim, D_STATE=sizes.d_state, CHUNK=plan.chunk_size,
        STRIDES=(x.stride(1), B.stride(1), C.stride(1), sizes.nheads * sizes.headdim), PERIODS=plan.every_state,
        BLOCK_T=tile_size(plan.chunk_size), BLOCK_N=tile_size(sizes.d_state), EARLY_START=early,
        TWO_AHEAD=_two_ahead(plan, config, x),
        **({"launch_pdl": True} if early else {}), **config.kwargs,
    )  # fmt: skip


def _starts_early(plan: Plan, config: Config, programs: int, device: torch.device) -> bool:
    """Whether the walk may begin before the preparation has ended, where nothing else stands between them.

    Programs that wait are put where there is room already: two on one multiprocessor and none on another. So only where
    two have no room on one, for their shared memory, or where there are many for each.
    """
    alone = config.num_stages == 3 and plan.chunk_size * plan.sizes.d_state >= 64 * 128
    enough = alone or programs >= 4 * multiprocessors(device)
    return starts_early(device) and enough and not plan.passes_states


def _two_ahead(plan: Plan, config: Config, x: Tensor) -> bool:
    """Whether what a plain chunk reads is copied two chunks ahead, where two programs share a multiprocessor.

    Where products run on Hopper's tensor cores, for which Triton would keep three buffers: two have room for two
    programs, see :func:`ssd_kernels.portable.walk.in_two_buffers`.
    """
    products = x.dtype == torch.bfloat16 and config.num_warps == 4 and config.block["BLOCK_P"] == 64
    return products and config.num_stages == 2 and not plan.every_state and is_hopper(x.device)


@triton.jit(do_not_specialize=[*CUT, *SEGMENTS, "nperiods"])
def _chunk_scan_kernel(
    x_ptr, B_ptr, C_ptr, D_ptr, vectors_ptr, factors_ptr, CB_ptr, initial_ptr, entering_ptr,
    y_ptr, states_ptr, decays_ptr, chunk_states_ptr, strides, table_ptr,
    seqlen, period, chunks_per_period, nchunks, segment, nsegments, nperiods,
    NHEADS: tl.constexpr, NGROUPS: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr, CHUNK: tl.constexpr,
    STRIDES: tl.constexpr, PERIODS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    EARLY_START: tl.constexpr, TWO_AHEAD: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P channels of one head, over one segment.

    Grid: (batch · nsegments · tiles of all heads,), tiles fastest. Without y_ptr only the state at the end is made, of
    the segments that another follows. `strides` are those of x, B, C, D and the initial state; STRIDES, those of a
    token in x, B, C and y, of which the compiler makes addresses that it need not work out for every row. PERIODS: a
    segment has several, each of which ends with a chunk.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PARTS: tl.constexpr = (HEADDIM + BLOCK_P - 1) // BLOCK_P  # tiles of a head
    STATE: tl.constexpr = HEADDIM * D_STATE
    WITH_OUTPUTS: tl.constexpr = y_ptr is not None
    x_strides, B_strides, C_strides, initial_strides = strides[0], strides[1], strides[2], strides[4]
    pid = tl.program_id(0)
    row = (pid // (NHEADS * PARTS)).to(tl.int64)  # of all segments
    sequence, first, stop, chunk, period_row, opens, closes = segment_bounds(
        row, table_ptr, seqlen, period, chunks_per_period, nchunks, segment, nsegments, nperiods
    )
    if sequence < 0:
        return
    if not WITH_OUTPUTS:  # noqa: SIM102 -- known when it is compiled, unlike the other
        if closes:
            return
    batch = sequence
    if table_ptr is not None:
        batch = tl.zeros_like(sequence)

    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)
    head = (pid // PARTS % NHEADS).to(tl.int64)
    offs_p = (pid % PARTS * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    in_r = offs_p < HEADDIM
    in_n = offs_n < D_STATE
    group = head // (NHEADS // NGROUPS)
    state_offs = (head * HEADDIM + offs_p)[:, None] * D_STATE + offs_n[None, :]
    in_state = in_r[:, None] & in_n[None, :]

    h = tl.zeros((BLOCK_P, BLOCK_N), dtype=tl.float32)
    if initial_ptr is not None:
        initial_ptrs = initial_ptr + sequence * initial_strides[0] + offs_n[None, :] * initial_strides[3]
        initial_ptrs += (head * initial_strides[1] + offs_p * initial_strides[2])[:, None]
        h += load(initial_ptrs, in_r & opens, in_n)
    if entering_ptr is not None:
        h += load(entering_ptr + row * NHEADS * STATE + state_offs, in_r & (not opens), in_n)
    D = None
    if D_ptr is not None:
        if len(strides[3]) == 2:
            D_ptrs = D_ptr + head * strides[3][0] + offs_p * strides[3][1]
            D = tl.load(D_ptrs, mask=in_r, other=0.0).to(tl.float32)[None, :]
        else:
            D = tl.load(D_ptr + head * strides[3][0]).to(tl.float32)
    x_ptrs = x_ptr + batch * x_strides[0] + head * x_strides[2] + offs_p * x_strides[3]
    B_ptrs = B_ptr + batch * B_strides[0] + group * B_strides[2] + offs_n[None, :] * B_strides[3]
    C_ptrs = C_ptr + batch * C_strides[0] + group * C_strides[2] + offs_n[:, None] * C_strides[3]
    y_ptrs = None
    if WITH_OUTPUTS:
        y_ptrs = y_ptr + batch * seqlen * NHEADS * HEADDIM + (head * HEADDIM + offs_p)[None, :]
    CB_ptr += group * (BLOCK_T * BLOCK_T)
    vectors_ptr += head * (VECTORS * BLOCK_T)
    factors_ptr += head * FACTORS
    # In few registers: of tokens, chunks and sequences there are fewer than 2³¹; their offsets are int64 again.
    chunk, first, stop = chunk.to(tl.int32), first.to(tl.int32), stop.to(tl.int32)
    closed = tl.where(closes, sequence, -1).to(tl.int32)  # the sequence that ends here
    period_stop = first + period
    if EARLY_START:  # until here nothing that the preparation makes has been read
        gdc_wait()
    last = chunk + count_chunks(stop - first, period, chunks_per_period, CHUNK).to(tl.int32)
    if not WITH_OUTPUTS:
        # Nothing is left at the end of what these chunks add.
        skipped, octaves = forgotten(factors_ptr + chunk.to(tl.int64) * (NHEADS * FACTORS), last - chunk, NHEADS)
        tl.store(decays_ptr + row * NHEADS + head, octaves)
        chunk += skipped
        period_stop += skipped // chunks_per_period * period
        first += cut_chunk(skipped, stop - first, period, chunks_per_period, CHUNK)[0]
    while chunk < last:
        # As far as chunks are plain, then as far as they are not: loops without a branch, which can be pipelined.
        for OTHER in tl.static_range(2):
            whole = 0
            if CHUNK == BLOCK_T:
                whole = (stop - first) // CHUNK
                if PERIODS:
                    whole = tl.where(period % CHUNK == 0, whole, 0)
            run = alike(OTHER == 0, factors_ptr, chunk, NHEADS, last - chunk, whole)
            enter, leave = factors(factors_ptr, chunk, NHEADS)
            outputs = no_outputs(BLOCK_P, BLOCK_T)
            for index in tl.range(0, run, num_stages=3 if TWO_AHEAD and OTHER == 0 else None):
                # What a single number says of a chunk is read a chunk ahead, so that nothing waits for it. Before or
                # after the outputs are written, as the machine code came out the faster: with a narrow state, before.
                if D_STATE < 128:
                    next_enter, next_leave = factors(factors_ptr, chunk + 1, NHEADS)
                if WITH_OUTPUTS and OTHER == 0:  # of the chunk before, while the copies of this one arrive
                    write_plain(outputs, D, y_ptrs, first, in_r & (index > 0), DTYPE, BLOCK_T, STRIDES[3])
                chunk_stop = first + tl.minimum(stop - first, CHUNK)
                if PERIODS:
                    chunk_stop = tl.minimum(chunk_stop, period_stop)
                if D_STATE >= 128:
                    next_enter, next_leave = factors(factors_ptr, chunk + 1, NHEADS)
                CB_offset = chunk.to(tl.int64) * (NGROUPS * BLOCK_T * BLOCK_T)
                vectors_offset = chunk.to(tl.int64) * (NHEADS * VECTORS * BLOCK_T)
                h, outputs = walk_chunk(
                    h, enter, leave, D, x_ptrs, B_ptrs, C_ptrs, CB_ptr + CB_offset, y_ptrs,
                    vectors_ptr + vectors_offset, first, chunk_stop, in_r, in_n, DTYPE, BLOCK_T, OTHER == 0, TWO_AHEAD,
                    STRIDES,
                )  # fmt: skip
                if PERIODS:
                    ends = (chunk_stop == period_stop) | (chunk_stop == stop)
                    if chunk_states_ptr is not None:
                        has_row = (table_ptr is None) | (period_row < nperiods)
                        chunk_state_ptrs = chunk_states_ptr + period_row * NHEADS * STATE + state_offs
                        tl.store(chunk_state_ptrs, h, mask=in_state & ends & has_row)
                    period_row += ends.to(tl.int64)
                    period_stop += tl.where(ends, period, 0)
                first = chunk_stop
                chunk += 1
                enter, leave = next_enter, next_leave
            if WITH_OUTPUTS and OTHER == 0:
                y, x_as_y, u = outputs
                if run > 0:  # u once more: that of the loop, used here too, would be held in two layouts there
                    u_ptr = vectors_ptr + (chunk - 1).to(tl.int64) * (NHEADS * VECTORS * BLOCK_T) + BLOCK_T
                    u = tl.load(u_ptr + tl.arange(0, BLOCK_T))[None, :]
                else:
                    u = tl.zeros((1, BLOCK_T), dtype=tl.float32)
                outputs = y, x_as_y, u
                write_plain(outputs, D, y_ptrs, first, in_r & (run > 0), DTYPE, BLOCK_T, STRIDES[3])
    if WITH_OUTPUTS:
        if closed >= 0:
            tl.store(states_ptr + closed.to(tl.int64) * (NHEADS * STATE) + state_offs, h, mask=in_state)
    else:
        tl.store(states_ptr + row * NHEADS * STATE + state_offs, h, mask=in_state)
