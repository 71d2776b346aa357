"""The scan in Triton by the kernels that suit the call, `ssd_kernels::ssd_scan_by_rule`: Hopper's, or the portable.

The rule is :func:`ssd_kernels.hopper.coverage.covers`; :func:`ssd_kernels.explain` tells what it says of a call.
"""

import math

from torch import Tensor

import ssd_kernels.portable  # noqa: F401 -- defines its operator
from ssd_kernels.hopper.coverage import covers
from ssd_kernels.library import call, expect_runnable
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
    """The scan in Triton, forward only; see :class:`ssd_kernels.interface.SSD`.

    Takes what :func:`ssd_kernels.portable.ssd` takes, and raises what it raises. On a Hopper GPU, what
    :func:`ssd_kernels.hopper.ssd` takes is done by its kernels.
    """
    expect_runnable("x", x, instead="chunked")
    return call_scan(
        "ssd_scan_by_rule", x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
        dt_limit=dt_limit, initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
        return_final_state=return_final_state, return_chunk_states=return_chunk_states,
    )  # fmt: skip


def _run(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    why_not = covers(
        x, B, C, chunk_size=chunk_size, dt_softplus=dt_softplus, dt_low=dt_low, cu_seqlens=cu_seqlens,
        return_chunk_states=nchunk_states > 0,
    )  # fmt: skip
    arguments = (
        x, dt, A, B, C, D, dt_bias, initial_state, chunk_size, dt_softplus, dt_low, dt_high, carry, cu_seqlens,
        nchunk_states,
    )  # fmt: skip
    if why_not is None:
        # Imported only here: where there is no Hopper GPU, nothing needs Gluon.
        from ssd_kernels.hopper.launcher import run

        return run(*arguments)
    return call("ssd_scan", *arguments)  # type: ignore[no-any-return]


define_scan("ssd_scan_by_rule", _run)
