"""The warp that loads: it asks TMA for the tiles of chunk after chunk, as soon as a stage is free."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ssd_kernels.hopper.transfers import load_tile


@gluon.jit
def producer(
    descriptors, tiles, barriers, place, bounds,
    CONSUMERS: gl.constexpr, PARTS: gl.constexpr, PART: gl.constexpr, D_STATE: gl.constexpr, PANELS: gl.constexpr,
    CHUNK: gl.constexpr, EXPONENTS: gl.constexpr, STAGES: gl.constexpr, PACKED: gl.constexpr, RANK: gl.constexpr,
):  # fmt: skip
    """Fill a stage for each slot of the segment: what all consumers share, and x and the decays of each."""
    x_desc, B_desc, C_desc, CB_desc, factors_desc, exponents_desc, tails_desc = descriptors
    x_tiles, B_tiles, C_tiles, CB_tiles, factors_tiles, _, exponents_tiles, _ = tiles
    full, empty = barriers
    batch, row, group, first_part, nheads, ngroups, nslots, before = place
    start, stop, first, _, begin, end = bounds
    SHARED: gl.constexpr = CHUNK * D_STATE * 4 + CHUNK * CHUNK * 2
    BYTES: gl.constexpr = SHARED + CONSUMERS * (CHUNK * PART * 2 + CHUNK * 8 + 128)
    PANEL: gl.constexpr = D_STATE // PANELS
    stage = 0
    phase = 1
    for slot in range(begin, end):
        token = start + (slot - first) * CHUNK
        mbarrier.wait(empty.index(stage), phase)
        mbarrier.expect(full.index(stage), BYTES)
        arrived = full.index(stage)
        for j in gl.static_range(CONSUMERS):
            head = (first_part + j) // PARTS
            channel = (first_part + j) % PARTS * PART
            k = (batch * nheads + head) * nslots + slot
            mine = stage * CONSUMERS + j
            load_tile(x_desc, batch, before, token, head, channel, arrived, x_tiles.index(mine), PARTS * PART, RANK)
            tma.async_copy_global_to_shared(factors_desc, [k * (4 * CHUNK)], arrived, factors_tiles.index(mine))
            tma.async_copy_global_to_shared(exponents_desc, [k * EXPONENTS], arrived, exponents_tiles.index(mine))
        for n in gl.static_range(PANELS):
            mine = stage * PANELS + n
            panel = n * PANEL
            B_tile = B_tiles.index(mine)
            load_tile(C_desc, batch, before, token, group, panel, arrived, C_tiles.index(mine), D_STATE, RANK)
            if PACKED:
                if token + CHUNK > stop:
                    # The next sequence's tokens would follow here.
                    load_tile(tails_desc, batch, before, row * CHUNK, group, panel, arrived, B_tile, D_STATE, RANK)
                else:
                    load_tile(B_desc, batch, before, token, group, panel, arrived, B_tile, D_STATE, RANK)
            else:
                load_tile(B_desc, batch, before, token, group, panel, arrived, B_tile, D_STATE, RANK)
        CB_row = ((batch * nslots + slot) * ngroups + group) * CHUNK
        tma.async_copy_global_to_shared(CB_desc, [CB_row, 0], arrived, CB_tiles.index(stage))
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1
