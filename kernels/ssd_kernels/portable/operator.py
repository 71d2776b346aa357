"""The five stages as one torch operator, `ssd_kernels::ssd_scan`, that torch.compile takes whole."""

import itertools
import math

import torch
from torch import Tensor

from ssd_kernels.checks import sequence_bounds
from ssd_kernels.interface import Sizes, check_inputs, results, state_dtype
from ssd_kernels.portable.bmm_chunk import bmm_chunk
from ssd_kernels.portable.chunk_cumsum import chunk_cumsum
from ssd_kernels.portable.chunk_scan import chunk_scan
from ssd_kernels.portable.chunk_state import chunk_state
from ssd_kernels.portable.chunk_table import chunk_table
from ssd_kernels.portable.library import define, device_of, expect_runnable
from ssd_kernels.portable.plan import Plan
from ssd_kernels.portable.state_passing import state_passing


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
    check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    expect_runnable("x", x, instead="chunked")
    nchunk_states = _count_chunks(x.shape[1], chunk_size, cu_seqlens) if return_chunk_states else 0
    y, final_state, chunk_states = torch.ops.ssd_kernels.ssd_scan(
        x, dt, A, B, C, D, dt_bias, initial_state, chunk_size, dt_softplus, *dt_limit, carry, cu_seqlens, nchunk_states
    )
    return results(y, final_state, chunk_states, return_final_state, return_chunk_states)


def _count_chunks(seqlen: int, chunk_size: int, cu_seqlens: Tensor | None) -> int:
    """Chunks of the caller's, of all packed sequences."""
    bounds = [0, seqlen] if cu_seqlens is None else sequence_bounds(cu_seqlens, seqlen)
    return sum(-(-(stop - start) // chunk_size) for start, stop in itertools.pairwise(bounds))


def _ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`nchunk_states` rows of states after chunks, none if they are not wanted."""
    sizes = Sizes.of(x, B, cu_seqlens)
    plan = Plan(sizes=sizes, asked_chunk_size=chunk_size, carry=carry, every_state=nchunk_states > 0)
    chunk_states = _empty_chunk_states(x, sizes, nchunk_states)
    if sizes.batch == 0 or sizes.seqlen == 0:
        zero = x.new_zeros(sizes.state_shape, dtype=torch.float32)
        return torch.empty_like(x), zero if initial_state is None else initial_state.clone(), chunk_states
    with device_of(x):
        table = None if cu_seqlens is None else chunk_table(cu_seqlens, plan)
        steps = chunk_cumsum(dt, A, dt_bias, dt_softplus, (dt_low, dt_high), plan, table)
        states = chunk_state(x, B, steps, plan, table)
        every = chunk_states if plan.every_state else None
        final_state = state_passing(states, steps, initial_state, every, plan, table)
        if not plan.independent:
            entering: Tensor | None = states
        else:
            entering = None if initial_state is None else initial_state[:, None]
        y = chunk_scan(x, C, D, steps, bmm_chunk(B, C, plan, table), entering, plan, table)
    return y, final_state, chunk_states


def _fake_ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sizes = Sizes.of(x, B, cu_seqlens)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, x.new_empty(sizes.state_shape, dtype=state_dtype(x)), _empty_chunk_states(x, sizes, nchunk_states)


def _empty_chunk_states(x: Tensor, sizes: Sizes, nchunk_states: int) -> Tensor:
    return x.new_empty((sizes.batch, nchunk_states, *sizes.state_shape[1:]), dtype=state_dtype(x))


define(
    "ssd_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, Tensor? initial_state, "
    "int chunk_size, bool dt_softplus, float dt_low, float dt_high, str carry, Tensor? cu_seqlens=None, "
    "SymInt nchunk_states=0) -> (Tensor, Tensor, Tensor)",
    _ssd_scan,
    _fake_ssd_scan,
    instead="take get_ssd('chunked'), which is differentiable",
)
