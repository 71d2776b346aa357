"""Tiles of (batch, tokens, heads, channels) tensors between global and shared memory, seen in 2, 3 or 4 dimensions."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma


@gluon.constexpr_function
def tiles_shape(count, tokens, width, rank):
    """The shape of `count` tiles in shared memory."""
    if rank == 4:
        return [count, 1, tokens, 1, width]
    return [count, 1, tokens, width] if rank == 3 else [count, tokens, width]


@gluon.jit
def load_tile(desc, batch, before, token, head, channel, arrived, tile, CHANNELS: gl.constexpr, RANK: gl.constexpr):
    """Ask for the tile from `token` of the row on, `before` all rows' tokens before it; heads have CHANNELS."""
    if RANK == 4:
        tma.async_copy_global_to_shared(desc, [batch, token, head, channel], arrived, tile)
    elif RANK == 3:
        tma.async_copy_global_to_shared(desc, [batch, token, head * CHANNELS + channel], arrived, tile)
    else:
        tma.async_copy_global_to_shared(desc, [before + token, head * CHANNELS + channel], arrived, tile)


@gluon.jit
def store_tile(desc, batch, before, token, head, channel, tile, CHANNELS: gl.constexpr, RANK: gl.constexpr):
    """Ask for the tile to be written; coordinates as of :func:`load_tile`."""
    if RANK == 4:
        tma.async_copy_shared_to_global(desc, [batch, token, head, channel], tile)
    elif RANK == 3:
        tma.async_copy_shared_to_global(desc, [batch, token, head * CHANNELS + channel], tile)
    else:
        tma.async_copy_shared_to_global(desc, [before + token, head * CHANNELS + channel], tile)
