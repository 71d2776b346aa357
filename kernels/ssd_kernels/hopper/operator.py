"""The Hopper kernels as one torch operator, `ssd_kernels::ssd_scan_hopper`, that torch.compile takes whole."""

import math

from torch import Tensor

from ssd_kernels.device import is_hopper
from ssd_kernels.hopper.coverage import covers
from ssd_kernels.scan_operator import call_scan, define_scan


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    carry: str = "all",
    return_final_state: bool = False,
    return_chunk_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """The scan in Gluon for Hopper, forward only; see :class:`ssd_kernels.interface.SSD`.

    The host does not read `cu_seqlens`, so that a call can be captured in a CUDA graph. The same call twice gives the
    same bits; a sequence in a larger batch may not, as more or fewer programs share it. Tokens change the rounding of
    earlier ones, up to 256 before them, by which their decays are scaled. Where a chunk decays by 2^200, values of
    dt x B, summed, must stay below 2^27.

    Raises:
        RuntimeError: not on a GPU of compute capability 9.0.
        NotImplementedError: what :func:`ssd_kernels.hopper.coverage.covers` does not take; or on `backward`.
    """
    return call_scan(
        "ssd_scan_hopper", x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
        dt_limit=dt_limit, initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
        return_final_state=return_final_state, return_chunk_states=return_chunk_states,
    )  # fmt: skip


def _run(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if not is_hopper(x.device):
        raise RuntimeError(f"x must be on a GPU of compute capability 9.0 for 'hopper', got device {x.device}")
    why_not = covers(
        x, B, C, chunk_size=chunk_size, dt_softplus=dt_softplus, dt_low=dt_low, cu_seqlens=cu_seqlens,
        return_chunk_states=nchunk_states > 0,
    )  # fmt: skip
    if why_not is not None:
        raise NotImplementedError(f"'hopper' does not take this call: {why_not}; 'triton' does, by other kernels")
    # Imported only here: where there is no Hopper GPU, nothing needs Gluon.
    from ssd_kernels.hopper.launcher import run

    return run(
        x, dt, A, B, C, D, dt_bias, initial_state, chunk_size, dt_softplus, dt_low, dt_high, carry, cu_seqlens,
        nchunk_states,
    )  # fmt: skip


define_scan("ssd_scan_hopper", _run)
