"""How TMA sees the tensors that the scan reads and writes, as the host describes them."""

import functools
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from ssd_kernels.hopper import configs
from ssd_kernels.hopper.configs import CHUNK
from ssd_kernels.launching import Tiles

_ELEMENTS = {torch.bfloat16: gl.bfloat16, torch.float32: gl.float32}


def common_rank(seqlen: int, *tensors: Tensor) -> int:
    """The fewest dimensions, of 4, in which all (batch, tokens, heads, channels) tensors can be seen, or TILE_RANK.

    Heads whose channels follow one another are one row of channels; so are batches of whole chunks one of tokens.
    """
    rank = configs.TILE_RANK
    for tensor in tensors:
        batch, _, heads, channels = tensor.shape
        strides = tensor.stride()
        if heads > 1 and strides[2] != channels:
            return 4
        if batch > 1 and (strides[0] != seqlen * strides[1] or seqlen % CHUNK):
            rank = max(rank, 3)
    return rank


def tiled(tensor: Tensor, width: int, rank: int) -> Tiles:
    """Tiles (CHUNK, width) of a (batch, tokens, heads, channels) tensor, seen in `rank` of them; zero beyond tokens."""
    batch, tokens, heads, channels = tensor.shape
    # The stride of a dimension of size 1 may be anything, and TMA is particular.
    of_batch, of_token = tensor.stride(0) if batch > 1 else 16, tensor.stride(1) if tokens > 1 else 16
    if rank == 4:
        of_head = tensor.stride(2) if heads > 1 else 16
        return _tiles(tensor, tensor.shape, (of_batch, of_token, of_head, 1), (1, CHUNK, 1, width))
    if rank == 3:
        return _tiles(tensor, (batch, tokens, heads * channels), (of_batch, of_token, 1), (1, CHUNK, width))
    return _tiles(tensor, (batch * tokens, heads * channels), (of_token, 1), (CHUNK, width))


def flat(tensor: Tensor, *block: int) -> Tiles:
    """Tiles of a contiguous tensor, seen as rows of block[-1] elements; or, where `block` is one number, as one row."""
    last = block[-1]
    if len(block) == 2:
        return _tiles(tensor, (tensor.numel() // last, last), (last, 1), block)
    return _tiles(tensor, (tensor.numel(),), (1,), block)


def _tiles(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...]) -> Tiles:
    return Tiles(tensor, shape, strides, block, _layout(block, tensor.dtype))


@functools.cache
def _layout(block: tuple[int, ...], dtype: torch.dtype) -> Any:
    """How a tile lies in shared memory; slow to find, and the same for every call."""
    return gl.NVMMASharedLayout.get_default_for(list(block), _ELEMENTS[dtype])
