"""The stages as one torch operator, `ssd_kernels::ssd_scan`, that torch.compile takes whole."""

import math

from torch import Tensor

from ssd_kernels.interface import Sizes
from ssd_kernels.library import device_of, expect_runnable
from ssd_kernels.portable.chunk_scan import chunk_scan, segment_states
from ssd_kernels.portable.chunk_table import chunk_table
from ssd_kernels.portable.configs import max_chunk
from ssd_kernels.portable.plan import Plan
from ssd_kernels.portable.prepare import prepare
from ssd_kernels.portable.state_passing import state_passing
from ssd_kernels.scan_operator import call_scan, define_scan, empty_chunk_states, unchanged


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

    Takes fp32, bf16 and fp16 inputs of any strides on a GPU, or on a CPU in Triton's interpreter. The host does not
    read `cu_seqlens` on a GPU, so that a call can be captured in a CUDA graph; but for `return_chunk_states` of packed
    sequences, whose number decides the shape of the result, it does. A sequence has the same bits alone, in a row of a
    batch, and packed.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: on `backward`; a gradient through this operator does not exist yet.
    """
    expect_runnable("x", x, instead="chunked")
    return call_scan(
        "ssd_scan", x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
        dt_limit=dt_limit, initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
        return_final_state=return_final_state, return_chunk_states=return_chunk_states,
    )  # fmt: skip


def _ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`nchunk_states` rows of states after chunks, none if they are not wanted."""
    sizes = Sizes.of(x, B, cu_seqlens)
    plan = Plan(
        sizes=sizes, asked_chunk_size=chunk_size, carry=carry, every_state=nchunk_states > 0,
        max_chunk=max_chunk(x.dtype, sizes.d_state),
    )  # fmt: skip
    chunk_states = empty_chunk_states(x, sizes, nchunk_states)
    if sizes.batch == 0 or sizes.seqlen == 0:
        y, final_state, _ = unchanged(x, initial_state, sizes)
        return y, final_state, chunk_states
    with device_of(x):
        table = None if cu_seqlens is None else chunk_table(cu_seqlens, plan)
        prepared = prepare(dt, A, B, C, dt_bias, dt_softplus, (dt_low, dt_high), plan, table)
        entering = None
        if plan.passes_states:
            entering, decays = segment_states(x, B, prepared, plan, table)
            state_passing(entering, decays, initial_state, plan, table)
        every = chunk_states if plan.every_state else None
        y, final_state = chunk_scan(x, B, C, D, prepared, initial_state, entering, every, plan, table)
    return y, final_state, chunk_states


define_scan("ssd_scan", _ssd_scan)
