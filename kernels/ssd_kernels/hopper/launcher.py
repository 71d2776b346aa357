"""A call of the Hopper kernels: two launches, or three where programs share a sequence."""

import torch
from torch import Tensor

from ssd_kernels.device import multiprocessors
from ssd_kernels.hopper.configs import CHUNK, scan_config
from ssd_kernels.hopper.prepare import prepare
from ssd_kernels.hopper.scan import scan
from ssd_kernels.hopper.segment_states import segment_states
from ssd_kernels.hopper.slots import count_slots
from ssd_kernels.interface import Sizes
from ssd_kernels.library import device_of
from ssd_kernels.repeating import Repeated
from ssd_kernels.scan_operator import unchanged

repeated = Repeated()


def run(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Arguments of the operator, such that :func:`ssd_kernels.hopper.coverage.covers` takes them."""
    if 0 in x.shape:
        return unchanged(x, initial_state, Sizes.of(x, B, cu_seqlens))
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state, cu_seqlens)
    options = (chunk_size if carry == "none" else None, dt_softplus, dt_low, dt_high)
    with device_of(x):
        y, final_state = repeated(lambda: _launch(*inputs, *options), inputs, options)
    chunk_states = torch.empty((x.shape[0], 0, *final_state.shape[1:]), dtype=torch.float32, device=x.device)
    return y, final_state, chunk_states


def _launch(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, restart: int | None, dt_softplus: bool, dt_low: float,
    dt_high: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`restart`: tokens after which the state restarts, if it does."""
    sizes = Sizes.of(x, B, cu_seqlens)
    nslots = count_slots(sizes.seqlen, sizes.nseqs, CHUNK)
    period = None if restart is None else restart // CHUNK
    config = scan_config(sizes, period, multiprocessors(x.device))
    prepared = prepare(dt, A, B, C, dt_bias, dt_softplus, (dt_low, dt_high), cu_seqlens, sizes, nslots)
    pieces = None
    if config.cut.segments > 1 and period is None:
        pieces = segment_states(x, B, prepared, cu_seqlens, sizes, nslots, config.cut)
    return scan(x, B, C, D, prepared, pieces, initial_state, cu_seqlens, period, sizes, nslots, config)
