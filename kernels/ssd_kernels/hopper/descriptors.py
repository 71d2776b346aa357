"""How TMA sees the tensors that the scan reads and writes, as the host describes them."""

import functools
from typing import Any

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ssd_kernels.hopper.configs import CHUNK

_ELEMENTS = {2: gl.bfloat16, 4: gl.float32}


def tiled(tensor: Tensor, width: int) -> TensorDescriptor:
    """Tiles (1, CHUNK, 1, width) of a (batch, tokens, heads, channels) tensor; zero beyond its tokens."""
    # The stride of a dimension of size 1 may be anything, and TMA is particular.
    strides = [tensor.stride(i) if tensor.shape[i] > 1 else 16 for i in range(3)]
    block = (1, CHUNK, 1, width)
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], list(block), _layout(block, tensor.itemsize))


def flat(tensor: Tensor, *block: int) -> TensorDescriptor:
    """Tiles of a contiguous tensor, seen as rows of block[-1] elements; or, where `block` is one number, as one row."""
    last = block[-1]
    shape = [tensor.numel() // last, last] if len(block) == 2 else [tensor.numel()]
    return TensorDescriptor(tensor, shape, [last, 1][-len(block) :], list(block), _layout(block, tensor.itemsize))


@functools.cache
def _layout(block: tuple[int, ...], itemsize: int) -> Any:
    """How a tile lies in shared memory; slow to find, and the same for every call."""
    return gl.NVMMASharedLayout.get_default_for(list(block), _ELEMENTS[itemsize])
