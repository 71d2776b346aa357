"""The second warpgroup of a part of a head whose state is too wide for one: it carries the last D_STATE / 2 columns.

Of y it finds what its columns give, S' C, and hands that over to :mod:`ssd_kernels.hopper.consumer`, which does the
rest. Where it is put is free again when the stage is: the consumer, which reads it, gives the stage back afterwards.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra.cuda import gdc_wait

from ssd_kernels.hopper.consumer import clear_after, entering_state, store_state
from ssd_kernels.hopper.halves import first_half_of_partner
from ssd_kernels.hopper.registers import scaled, times
from ssd_kernels.hopper.turns import entry, following
from ssd_kernels.hopper.versions import barrier


@gluon.jit
def allocate_handed(STAGES: gl.constexpr, P: gl.constexpr, Q: gl.constexpr):
    """Tiles (P, Q) for what is handed over, one a stage, and the barriers that say it is there."""
    # As warps hold it, 8 × 8 elements after one another: no two lanes want the same bank.
    SQUARES: gl.constexpr = gl.SharedLinearLayout([
        [0, 1], [0, 2], [0, 4], [1, 0], [2, 0], [4, 0], [0, 8], [0, 16], [0, 32], [8, 0], [16, 0], [32, 0],
    ])  # fmt: skip
    tiles = gl.allocate_shared_memory(gl.float32, [STAGES, P, Q], SQUARES)
    handed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(handed.index(i), count=1)
    return tiles, handed


@gluon.jit
def partner(
    tiles, barriers, pointers, strides, place, bounds, cut,
    PARTS: gl.constexpr, P: gl.constexpr, D_STATE: gl.constexpr, Q: gl.constexpr, STAGES: gl.constexpr,
    PACKED: gl.constexpr, RESTART: gl.constexpr, EARLY_START: gl.constexpr,
):  # fmt: skip
    """Part `first_part` over the slots of one segment: S' C of each chunk, and at the sequence's end the state."""
    N: gl.constexpr = D_STATE // 2
    LS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    LY: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, Q, 16])
    AS: gl.constexpr = gl.DotOperandLayout(0, LS, 2)
    AY: gl.constexpr = gl.DotOperandLayout(0, LY, 2)
    x_tiles, B_tiles, C_tiles, _, factors_tiles, _, exponents_tiles, _, handed_tiles = tiles
    full, empty, handed = barriers
    _, _, initial_ptr, pieces_ptr, decays_ptr, final_ptr, _ = pointers
    _, row, _, part, nheads, _, _, _ = place
    start, stop, first, last, begin, end = bounds
    if EARLY_START:
        gdc_wait()
    S = entering_state(
        initial_ptr, pieces_ptr, decays_ptr, strides[1], row, part, nheads, cut, 1, 2, PARTS, P, N, RESTART, LS
    )
    zero = gl.full([P, Q], 0.0, gl.float32, LY)
    closing = gl.to_tensor(0.0)
    stage = 0
    phase = 0
    for slot in range(begin, end):
        token = start + (slot - first) * Q
        mbarrier.wait(full.index(stage), phase)
        if PACKED:  # noqa: SIM102 -- decided when compiled
            if token + Q > stop:
                clear_after(x_tiles.index(stage), stop - token, P, Q)
        exponents = exponents_tiles.index(stage)
        factors = factors_tiles.index(stage)
        if RESTART:  # noqa: SIM102 -- decided when compiled
            if (slot > first) & ((slot - first) % cut[3] == 0):
                S = gl.full([P, N], 0.0, gl.float32, LS)
        scale, opening, steep, closing, between = entry(exponents, closing)
        if scale != 0.0:
            S = scaled(S, scale)
        entering = gl.convert_layout(S.to(gl.bfloat16), AY)
        C_tile = C_tiles.index(stage * 2 + 1).reshape([Q, N])
        y = warpgroup_mma(entering, C_tile.permute((1, 0)), zero, use_acc=False, is_async=True)
        x = x_tiles.index(stage).reshape([Q, P]).permute((1, 0)).load(AS)
        w_high = factors.slice(0, Q).load(gl.SliceLayout(0, AS))
        w_low = factors.slice(Q, Q).load(gl.SliceLayout(0, AS))
        xw = times(x, w_high[None, :], w_low[None, :])
        y = warpgroup_mma_wait(0, deps=[y])
        if steep:
            S = scaled(S, opening)
        if between != 0.0:
            y, S, xw = first_half_of_partner(y, S, xw, between, Q, LY, AS)
        S = warpgroup_mma(xw, B_tiles.index(stage * 2 + 1).reshape([Q, N]), S, is_async=True)
        handed_tiles.index(stage).store(y)
        # All warps have stored.
        barrier()
        mbarrier.arrive(handed.index(stage), count=1)
        S = warpgroup_mma_wait(0, deps=[S])
        mbarrier.arrive(empty.index(stage), count=1)
        stage, phase = following(stage, phase, STAGES)
    if (end == last) & ((begin < end) | (cut[0] == 0)):
        store_state(final_ptr, S, closing, row * nheads * PARTS + part, 1, 2, P, N, LS)
