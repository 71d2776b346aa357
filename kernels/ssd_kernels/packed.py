"""Packed sequences for an implementation that takes whole ones: a loop over them. Imports torch only."""

import itertools
from typing import Any

import torch
from torch import Tensor

from ssd_kernels.checks import sequence_bounds
from ssd_kernels.interface import SSD, Sizes, results, state_dtype


def one_by_one(
    ssd: SSD,
    sizes: Sizes,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    initial_state: Tensor | None,
    cu_seqlens: Tensor,
    return_final_state: bool,
    return_chunk_states: bool,
    **options: Any,
) -> Tensor | tuple[Tensor, ...]:
    """What `ssd` says of each of the packed sequences, packed again; checked arguments as of :class:`SSD`.

    The host reads `cu_seqlens`: on a GPU it waits for it.
    """
    bounds = sequence_bounds(cu_seqlens, sizes.seqlen)
    nchunks = [-(-(stop - start) // chunk_size) for start, stop in itertools.pairwise(bounds)]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_state = torch.empty(sizes.state_shape, dtype=state_dtype(x), device=x.device)
    chunk_states = final_state.new_empty((1, sum(nchunks) if return_chunk_states else 0, *sizes.state_shape[1:]))
    first = 0
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        part = slice(start, stop)
        y[:, part], final_state[i : i + 1], *states = ssd(
            x[:, part], dt[:, part], A, B[:, part], C[:, part], chunk_size=chunk_size,
            initial_state=None if initial_state is None else initial_state[i : i + 1],
            return_final_state=True, return_chunk_states=return_chunk_states, **options,
        )  # fmt: skip
        if return_chunk_states:
            chunk_states[:, first : first + nchunks[i]] = states[0]
            first += nchunks[i]
    return results(y, final_state, chunk_states, return_final_state, return_chunk_states)
