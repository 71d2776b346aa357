"""A call of the Hopper kernels: two launches, or three where programs share a sequence."""

from torch import Tensor

from ssd_kernels.hopper.configs import CHUNK, scan_config
from ssd_kernels.hopper.device import multiprocessors
from ssd_kernels.hopper.prepare import prepare
from ssd_kernels.hopper.scan import scan
from ssd_kernels.hopper.segment_states import segment_states
from ssd_kernels.hopper.slots import count_slots
from ssd_kernels.interface import Sizes
from ssd_kernels.portable.library import device_of
from ssd_kernels.scan_operator import empty_chunk_states, unchanged


def run(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Arguments of the operator, such that :func:`ssd_kernels.hopper.coverage.covers` takes them."""
    sizes = Sizes.of(x, B, cu_seqlens)
    if sizes.batch == 0 or sizes.seqlen == 0:
        return unchanged(x, initial_state, sizes)
    nslots = count_slots(sizes.seqlen, sizes.nseqs, CHUNK)
    period = chunk_size // CHUNK if carry == "none" else None
    config = scan_config(sizes, period, multiprocessors(x.device))
    with device_of(x):
        prepared = prepare(dt, A, B, C, dt_bias, dt_softplus, (dt_low, dt_high), cu_seqlens, sizes, nslots)
        pieces = None
        if config.cut.segments > 1 and period is None:
            pieces = segment_states(x, B, prepared, cu_seqlens, sizes, nslots, config.cut)
        y, final_state = scan(x, B, C, D, prepared, pieces, initial_state, cu_seqlens, period, sizes, nslots, config)
    return y, final_state, empty_chunk_states(x, sizes, 0)
