"""A long prompt through a layer slice by slice, so that what the layer makes in between takes little memory."""

from collections.abc import Callable

import torch
from torch import Tensor

# Tokens of a slice: a multiple of any chunk size, and enough that products of matrices lose nothing to their edges.
SLICE = 8192


def takes_slices(hidden: Tensor) -> bool:
    """Whether (batch, seqlen, d_model) is more than a slice, and nobody wants what is made in between.

    Autograd keeps that anyway; a compiler plans memory itself, and would have a graph for each number of slices.
    """
    return not torch.compiler.is_compiling() and not torch.is_grad_enabled() and hidden.shape[1] > SLICE


def by_slices(hidden: Tensor, work: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Overwrite (batch, seqlen, d_model) by what a layer makes of it, slice by slice.

    Args:
        hidden: the layer's input.
        work: the layer, of a contiguous slice and the index of its first token, in order; it may overwrite the slice.

    Returns:
        `hidden`.
    """
    for start in range(0, hidden.shape[1], SLICE):
        place = hidden[:, start : start + SLICE]
        made = work(place.contiguous(), start)
        if made.data_ptr() != place.data_ptr():
            place.copy_(made)
    return hidden
