"""The warp that loads: it asks TMA for the tiles of chunk after chunk, as soon as a stage is free."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.language.extra.cuda import gdc_wait

from ssd_kernels.hopper.transfers import load_tile
from ssd_kernels.hopper.turns import following


@gluon.jit
def producer(
    descriptors, tiles, barriers, place, bounds,
    CONSUMERS: gl.constexpr, SPLIT: gl.constexpr, PARTS: gl.constexpr, PART: gl.constexpr, D_STATE: gl.constexpr,
    CHUNK: gl.constexpr, EXPONENTS: gl.constexpr, STAGES: gl.constexpr, PACKED: gl.constexpr, RANK: gl.constexpr,
    EARLY_START: gl.constexpr,
):  # fmt: skip
    """Fill a stage for each slot of the segment: what all consumers share, and x and the decays of each."""
    _, empty, _ = barriers
    begin, end = bounds[4], bounds[5]
    # What the preparation does not make is asked for before it has ended.
    ahead = gl.minimum(begin + STAGES, end)
    for slot in range(begin, ahead):
        _load_inputs(
            descriptors, tiles, barriers, place, bounds, slot, slot - begin,
            CONSUMERS, SPLIT, PARTS, PART, D_STATE, CHUNK, PACKED, RANK,
        )  # fmt: skip
    if EARLY_START:
        gdc_wait()
    stage = 0
    phase = 0
    for slot in range(begin, end):
        if slot >= ahead:
            mbarrier.wait(empty.index(stage), phase ^ 1)
            _load_inputs(
                descriptors, tiles, barriers, place, bounds, slot, stage,
                CONSUMERS, SPLIT, PARTS, PART, D_STATE, CHUNK, PACKED, RANK,
            )  # fmt: skip
        _load_prepared(
            descriptors, tiles, barriers, place, bounds, slot, stage,
            CONSUMERS, SPLIT, PARTS, D_STATE, CHUNK, EXPONENTS, PACKED, RANK,
        )  # fmt: skip
        stage, phase = following(stage, phase, STAGES)


@gluon.jit
def _load_inputs(
    descriptors, tiles, barriers, place, bounds, slot, stage,
    CONSUMERS: gl.constexpr, SPLIT: gl.constexpr, PARTS: gl.constexpr, PART: gl.constexpr, D_STATE: gl.constexpr,
    CHUNK: gl.constexpr, PACKED: gl.constexpr, RANK: gl.constexpr,
):  # fmt: skip
    """Say how much a stage is to hold, and ask for x, C and, where no other sequence follows in the tile, B."""
    x_desc, B_desc, C_desc, _, _, _, _ = descriptors
    x_tiles, B_tiles, C_tiles, _, _, _, _, _, _ = tiles
    batch, _, group, first_part, _, _, _, before = place
    SHARED: gl.constexpr = CHUNK * D_STATE * 4 + CHUNK * CHUNK * 2
    BYTES: gl.constexpr = SHARED + CONSUMERS * (CHUNK * PART * 2 + CHUNK * 8 + 128)
    token = bounds[0] + (slot - bounds[2]) * CHUNK
    arrived = barriers[0].index(stage)
    mbarrier.expect(arrived, BYTES)
    for j in gl.static_range(CONSUMERS):
        head = (first_part + j) // PARTS
        channel = (first_part + j) % PARTS * PART
        x_tile = x_tiles.index(stage * CONSUMERS + j)
        load_tile(x_desc, batch, before, token, head, channel, arrived, x_tile, PARTS * PART, RANK)
    for k in gl.static_range(SPLIT):
        panel = stage * SPLIT + k
        n = k * (D_STATE // SPLIT)
        load_tile(C_desc, batch, before, token, group, n, arrived, C_tiles.index(panel), D_STATE, RANK)
        if PACKED:
            if token + CHUNK <= bounds[1]:
                load_tile(B_desc, batch, before, token, group, n, arrived, B_tiles.index(panel), D_STATE, RANK)
        else:
            load_tile(B_desc, batch, before, token, group, n, arrived, B_tiles.index(panel), D_STATE, RANK)


@gluon.jit
def _load_prepared(
    descriptors, tiles, barriers, place, bounds, slot, stage,
    CONSUMERS: gl.constexpr, SPLIT: gl.constexpr, PARTS: gl.constexpr, D_STATE: gl.constexpr, CHUNK: gl.constexpr,
    EXPONENTS: gl.constexpr, PACKED: gl.constexpr, RANK: gl.constexpr,
):  # fmt: skip
    """Ask for the decays, CB and, where another sequence follows in the tile, B as the preparation copied it."""
    _, _, _, CB_desc, factors_desc, exponents_desc, tails_desc = descriptors
    _, B_tiles, _, CB_tiles, factors_tiles, _, exponents_tiles, _, _ = tiles
    batch, row, group, first_part, nheads, ngroups, nslots, before = place
    arrived = barriers[0].index(stage)
    for j in gl.static_range(CONSUMERS):
        i = (batch * nheads + (first_part + j) // PARTS) * nslots + slot
        mine = stage * CONSUMERS + j
        tma.async_copy_global_to_shared(factors_desc, [i * (4 * CHUNK)], arrived, factors_tiles.index(mine))
        tma.async_copy_global_to_shared(exponents_desc, [i * EXPONENTS], arrived, exponents_tiles.index(mine))
    CB_row = ((batch * nslots + slot) * ngroups + group) * CHUNK
    tma.async_copy_global_to_shared(CB_desc, [CB_row, 0], arrived, CB_tiles.index(stage))
    if PACKED:  # noqa: SIM102 -- decided when compiled
        if bounds[0] + (slot - bounds[2] + 1) * CHUNK > bounds[1]:
            for k in gl.static_range(SPLIT):
                B_tile = B_tiles.index(stage * SPLIT + k)
                n = k * (D_STATE // SPLIT)
                load_tile(tails_desc, batch, before, row * CHUNK, group, n, arrived, B_tile, D_STATE, RANK)
