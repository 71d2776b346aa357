"""The warpgroup that computes: one part of a head, chunk after chunk, its state in registers.

Both the state and y are held transposed, (P, N) and (P, Q), so that every left operand of the tensor core comes from
registers, and B, C and CB go from TMA into it as they are.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

from ssd_kernels.hopper.configs import NEGLIGIBLE
from ssd_kernels.hopper.halves import first_half
from ssd_kernels.hopper.registers import scaled, times, unpacked
from ssd_kernels.hopper.steep import steep_chunk
from ssd_kernels.hopper.transfers import store_tile
from ssd_kernels.hopper.turns import entry, following
from ssd_kernels.hopper.versions import barrier


@gluon.jit
def consumer(
    y_desc, tiles, barriers, pointers, strides, place, bounds, cut, j: gl.constexpr, CONSUMERS: gl.constexpr,
    SPLIT: gl.constexpr, PARTS: gl.constexpr, P: gl.constexpr, D_STATE: gl.constexpr, Q: gl.constexpr,
    STAGES: gl.constexpr, PACKED: gl.constexpr, RESTART: gl.constexpr, RANK: gl.constexpr,
    EARLY_START: gl.constexpr,
):  # fmt: skip
    """Part `first_part + j` over the slots of one segment: y of each chunk, and at the sequence's end the state.

    Where SPLIT is 2, of the state the first D_STATE / 2 columns, and y with what the partner hands over.
    """
    N: gl.constexpr = D_STATE // SPLIT
    # With no other warpgroup's products to fill the tensor core meanwhile, x, w and the exponents of a chunk are loaded
    # while the state's product of the chunk before still runs: that is waited for in the turn that takes the state. Two
    # have too few registers for that: ptxas would wait after each product.
    ALONE: gl.constexpr = CONSUMERS * SPLIT == 1
    LS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    LY: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, Q, 16])
    AS: gl.constexpr = gl.DotOperandLayout(0, LS, 2)
    AY: gl.constexpr = gl.DotOperandLayout(0, LY, 2)
    x_tiles, B_tiles, C_tiles, CB_tiles, factors_tiles, factors_fp32_tiles, exponents_tiles, y_tiles, _ = tiles
    handed_tiles = tiles[8]
    full, empty, handed = barriers
    y_ptr, D_ptr, initial_ptr, pieces_ptr, decays_ptr, final_ptr, steps_ptr = pointers
    batch, row, _, first_part, nheads, _, nslots, before = place
    start, stop, first, last, begin, end = bounds
    part = first_part + j
    head = part // PARTS
    channel = part % PARTS * P
    steps_ptr += (batch * nheads + head).to(gl.int64) * nslots * Q
    y_tile = y_tiles.index(j)
    D = _skip(D_ptr, strides[0], head, channel, P, LY)
    if EARLY_START:
        gdc_wait()
    S = entering_state(
        initial_ptr, pieces_ptr, decays_ptr, strides[1], row, part, nheads, cut, 0, SPLIT, PARTS, P, N, RESTART, LS
    )
    if ALONE:
        S = warpgroup_mma_init(S)
    zero = gl.full([P, Q], 0.0, gl.float32, LY)
    closing = gl.to_tensor(0.0)
    stage = 0
    used = 0
    phase = 0
    for slot in range(begin, end):
        token = start + (slot - first) * Q
        mine = stage * CONSUMERS + j
        mbarrier.wait(full.index(stage), phase)
        if PACKED:  # noqa: SIM102 -- decided when compiled
            if token + Q > stop:
                clear_after(x_tiles.index(mine), stop - token, P, Q)
        exponents = exponents_tiles.index(mine)
        factors = factors_tiles.index(mine)
        B_tile = B_tiles.index(stage * SPLIT).reshape([Q, N])
        C_tile = C_tiles.index(stage * SPLIT).reshape([Q, N])
        CB_tile = CB_tiles.index(stage)
        scale, opening, steep, closing, between = entry(exponents, closing)
        if ALONE:
            x, xw = _weighted(x_tiles.index(mine), factors, P, Q, AY)
            S = warpgroup_mma_wait(0, deps=[S])
        if RESTART:  # noqa: SIM102 -- decided when compiled
            if (slot > first) & ((slot - first) % cut[3] == 0):
                S = gl.full([P, N], 0.0, gl.float32, LS)
        if scale != 0.0:
            S = scaled(S, scale)
        entering = gl.convert_layout(S.to(gl.bfloat16), AY)
        y = warpgroup_mma(entering, C_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        if slot > begin:
            store_tile(y_desc, batch, before, token - Q, head, channel, y_tile, PARTS * P, RANK)
            if not ALONE and SPLIT == 1:
                mbarrier.arrive(empty.index(used), count=1)
        if steep:
            # Its y from the state as it is; what the chunk adds to the state follows below, as for all.
            from_state = warpgroup_mma_wait(0, deps=[y])
            if SPLIT > 1:
                mbarrier.wait(handed.index(stage), phase)
                from_state += handed_tiles.index(stage).load(LY)
            steep_chunk(
                from_state, x_tiles.index(mine), CB_tile, factors_fp32_tiles.index(mine), steps_ptr + slot * Q,
                D, D_ptr, y_tile, P, Q, LY,
            )  # fmt: skip
            S = scaled(S, opening)
        if not ALONE:
            x, xw = _weighted(x_tiles.index(mine), factors, P, Q, AY)
        if between != 0.0:
            y, S, xw = first_half(y, S, xw, CB_tile, between, P, Q, LY)
        y = warpgroup_mma(xw, CB_tile.permute((1, 0)), y, is_async=True)
        S = warpgroup_mma(gl.convert_layout(xw, AS), B_tile, S, is_async=True)
        u = factors_fp32_tiles.index(mine).slice(Q, Q).load(gl.SliceLayout(0, LY))
        if ALONE:  # noqa: SIM102 -- decided when compiled
            if slot > begin:
                # Not before: all warps wait for each other here, which costs nothing while a product runs.
                mbarrier.arrive(empty.index(used), count=1)
        out = unpacked(gl.convert_layout(x, LY)) * D[:, None]
        y = warpgroup_mma_wait(1, deps=[y])
        if SPLIT > 1:
            mbarrier.wait(handed.index(stage), phase)
            y += handed_tiles.index(stage).load(LY)
        if D_ptr is not None:
            out += y * u[None, :]
        else:
            out = y * u[None, :]
        if steep == 0:
            tma.store_wait(0)
            y_tile.reshape([Q, P]).permute((1, 0)).store(out.to(gl.bfloat16))
            fence_async_shared()
        if not ALONE:
            S = warpgroup_mma_wait(0, deps=[S])
        if SPLIT > 1:
            # At once: of two stages the other may still be on its way, and waiting for it would leave nothing to load.
            mbarrier.arrive(empty.index(stage), count=1)
        used = stage
        stage, phase = following(stage, phase, STAGES)
    if ALONE:
        S = warpgroup_mma_wait(0, deps=[S])
    barrier()
    if begin < end:
        token = start + (end - 1 - first) * Q
        _store_last(y_desc, y_ptr, y_tile, batch, before, token, stop, head, channel, nheads, PARTS, P, Q, PACKED, RANK)
    if (end == last) & ((begin < end) | (cut[0] == 0)):
        store_state(final_ptr, S, closing, row * nheads * PARTS + part, 0, SPLIT, P, N, LS)
    tma.store_wait(0)


@gluon.jit
def clear_after(x_tile, count, P: gl.constexpr, Q: gl.constexpr):
    """Zero what follows the first `count` tokens of a tile: tokens of the next sequence, which need not be finite.

    In shared memory, where it happens once: in registers, ptxas moves all of x in every chunk. TMA loads nothing here
    afterwards, as the chunk is the sequence's last. Two warpgroups that share a tile may both do so.
    """
    LB: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    square = x_tile.reshape([Q, P])
    x = square.load(LB)
    square.store(gl.where((gl.arange(0, Q, layout=gl.SliceLayout(1, LB)) < count)[:, None], x, 0.0))
    # Here, so that the compiler puts none where other chunks pass.
    barrier()


@gluon.jit
def _weighted(x_tile, factors, P: gl.constexpr, Q: gl.constexpr, AY: gl.constexpr):
    """A chunk's x (P, Q) and w x."""
    x = x_tile.reshape([Q, P]).permute((1, 0)).load(AY)
    w_high = factors.slice(0, Q).load(gl.SliceLayout(0, AY))
    w_low = factors.slice(Q, Q).load(gl.SliceLayout(0, AY))
    return x, times(x, w_high[None, :], w_low[None, :])


@gluon.jit
def entering_state(
    initial_ptr, pieces_ptr, decays_ptr, strides, row, part, nheads, cut, k: gl.constexpr, SPLIT: gl.constexpr,
    PARTS: gl.constexpr, P: gl.constexpr, N: gl.constexpr, RESTART: gl.constexpr, LS: gl.constexpr,
):  # fmt: skip
    """Columns k · N on of the state at the segment's start: of pieces before it and `initial`, what has not decayed."""
    offs_p = gl.arange(0, P, layout=gl.SliceLayout(1, LS))
    offs_n = k * N + gl.arange(0, N, layout=gl.SliceLayout(0, LS))
    segment, segments, pieces, _ = cut
    S = gl.full([P, N], 0.0, gl.float32, LS)
    decay = gl.to_tensor(0.0)
    if pieces_ptr is not None:
        offs = offs_p[:, None] * (N * SPLIT) + offs_n[None, :]
        piece = segment * pieces - 1
        while (piece >= 0) & (decay > -NEGLIGIBLE):
            i = ((row * (segments - 1) * pieces + piece) * nheads * PARTS + part).to(gl.int64)
            S += gl.exp2(decay) * gl.load(pieces_ptr + i * (P * N * SPLIT) + offs)
            decay += gl.load(decays_ptr + i)
            piece -= 1
    if initial_ptr is not None:
        channels = (part % PARTS * P + offs_p).to(gl.int64)
        initial_ptr += row.to(gl.int64) * strides[0] + (part // PARTS).to(gl.int64) * strides[1]
        initial_ptrs = initial_ptr + channels[:, None] * strides[2] + offs_n.to(gl.int64)[None, :] * strides[3]
        reached = decay > -NEGLIGIBLE
        if RESTART:
            reached = segment == 0
        if reached:
            S += gl.exp2(decay) * gl.load(initial_ptrs)
    return S


@gluon.jit
def _skip(D_ptr, strides, head, channel, P: gl.constexpr, LY: gl.constexpr):
    """D of each channel, zero where there is none."""
    offs_p = channel + gl.arange(0, P, layout=gl.SliceLayout(1, LY))
    if D_ptr is not None:
        D = gl.load(D_ptr + head * strides[0] + offs_p * strides[1]).to(gl.float32)
    else:
        D = gl.full([P], 0.0, gl.float32, gl.SliceLayout(1, LY))
    return D


@gluon.jit
def store_state(
    final_ptr, S, closing, i, k: gl.constexpr, SPLIT: gl.constexpr, P: gl.constexpr, N: gl.constexpr, LS: gl.constexpr
):
    """Columns k · N on of part i of the final states."""
    offs_p = gl.arange(0, P, layout=gl.SliceLayout(1, LS))
    offs_n = k * N + gl.arange(0, N, layout=gl.SliceLayout(0, LS))
    ptrs = final_ptr + i.to(gl.int64) * (P * N * SPLIT) + offs_p[:, None] * (N * SPLIT) + offs_n[None, :]
    gl.store(ptrs, scaled(S, closing))


@gluon.jit
def _store_last(
    y_desc, y_ptr, y_tile, batch, before, token, stop, head, channel, nheads,
    PARTS: gl.constexpr, P: gl.constexpr, Q: gl.constexpr, PACKED: gl.constexpr, RANK: gl.constexpr,
):  # fmt: skip
    """The segment's last chunk of y; of packed sequences without TMA, if the next sequence follows within the tile."""
    whole = token + Q <= stop
    if PACKED:
        if whole == 0:
            LB: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
            tokens = token + gl.arange(0, Q, layout=gl.SliceLayout(1, LB))
            offs_p = channel + gl.arange(0, P, layout=gl.SliceLayout(0, LB))
            ptrs = y_ptr + (tokens.to(gl.int64) * nheads + head)[:, None] * (PARTS * P) + offs_p[None, :]
            gl.store(ptrs, y_tile.reshape([Q, P]).load(LB), mask=(tokens < stop)[:, None])
    else:
        whole = token + Q > token
    if whole:
        store_tile(y_desc, batch, before, token, head, channel, y_tile, PARTS * P, RANK)
