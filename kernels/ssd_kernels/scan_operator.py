"""The scan as an operator of torch's, whichever kernels run it: schema, outputs without values, how it is called."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ssd_kernels.checks import sequence_bounds
from ssd_kernels.interface import Sizes, check_inputs, results, state_dtype
from ssd_kernels.launching import is_heard
from ssd_kernels.library import call, define
from ssd_kernels.repeating import Remembered, heard
from ssd_kernels.watching import is_watched

_SCHEMA = (
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, Tensor? initial_state, "
    "int chunk_size, bool dt_softplus, float dt_low, float dt_high, str carry, Tensor? cu_seqlens=None, "
    "SymInt nchunk_states=0) -> (Tensor, Tensor, Tensor)"
)

_calls = Remembered()  # by name and arguments


def define_scan(name: str, run: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """Define `ssd_kernels::name` for :func:`call_scan`: y, the final state, and `nchunk_states` states after chunks."""
    define(f"{name}{_SCHEMA}", run, _fake)


def call_scan(
    name: str, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, chunk_size: int, D: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float], initial_state: Tensor | None,
    cu_seqlens: Tensor | None, carry: str, return_final_state: bool, return_chunk_states: bool,
) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
    """Check the arguments of :class:`ssd_kernels.interface.SSD` and call the operator of that name with them.

    Where a call like this one was remembered and nobody watches, what it launched is launched without either.
    """
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state, cu_seqlens)
    addresses: list[int] = []
    kind = None
    # Options that are equal mean the same, but a chunk_size of 64.0 is an error. What cu_seqlens holds is checked where
    # it is on a CPU.
    if (
        type(chunk_size) is int
        and (cu_seqlens is None or getattr(cu_seqlens, "is_cuda", False))
        and not (return_chunk_states or is_watched() or is_heard())
    ):
        options = (name, chunk_size, dt_softplus, dt_limit, carry, bool(return_final_state))
        remembered, kind = _calls.find(inputs, options, addresses, differentiable=torch.is_grad_enabled())
        if remembered is not None:
            made = remembered.on_its_device(addresses)
            return made if return_final_state else made[0]
    check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    nchunk_states = _count_chunks(x.shape[1], chunk_size, cu_seqlens) if return_chunk_states else 0
    with heard() as repeated:
        y, final_state, chunk_states = call(
            name, x, dt, A, B, C, D, dt_bias, initial_state, chunk_size, dt_softplus, *dt_limit, carry, cu_seqlens,
            nchunk_states, instead="take get_ssd('chunked'), which is differentiable",
        )  # fmt: skip
    if kind is not None and len(repeated) == 1:
        _calls.keep(kind, repeated[0] if return_final_state else repeated[0].without_last_output())
    return results(y, final_state, chunk_states, return_final_state, return_chunk_states)


def unchanged(x: Tensor, initial_state: Tensor | None, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """What the operator returns of no token at all."""
    zero = x.new_zeros(sizes.state_shape, dtype=state_dtype(x))
    state = zero if initial_state is None else initial_state.clone()
    return torch.empty_like(x), state, empty_chunk_states(x, sizes, 0)


def empty_chunk_states(x: Tensor, sizes: Sizes, nchunk_states: int) -> Tensor:
    """Room for the states after chunks."""
    return x.new_empty((sizes.batch, nchunk_states, *sizes.state_shape[1:]), dtype=state_dtype(x))


def _count_chunks(seqlen: int, chunk_size: int, cu_seqlens: Tensor | None) -> int:
    """Chunks of the caller's, of all packed sequences."""
    bounds = [0, seqlen] if cu_seqlens is None else sequence_bounds(cu_seqlens, seqlen)
    return sum(-(-(stop - start) // chunk_size) for start, stop in itertools.pairwise(bounds))


def _fake(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
    cu_seqlens: Tensor | None = None, nchunk_states: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sizes = Sizes.of(x, B, cu_seqlens)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, x.new_empty(sizes.state_shape, dtype=state_dtype(x)), empty_chunk_states(x, sizes, nchunk_states)
