"""The scan in plain torch, block by block: what a CPU runs.

Within a block of tokens, with a the running sum of dt · A and h the state entering it:

    y_i = e^{a_i} h C_i + Σ_{j≤i} (C_i·B_j) e^{a_i − a_j} dt_j x_j + D x_i
    h ← e^{a_last} h + Σ_j e^{a_last − a_j} dt_j x_j B_jᵀ

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.reference`.
"""

import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from ssd_kernels.checks import wants_gradient
from ssd_kernels.inductor import foreseen
from ssd_kernels.interface import Sizes, check_inputs, discretise, results, state_dtype
from ssd_kernels.packed import one_by_one

# Tokens and heads (of all sequences and groups together) worked on at once, so that what they need stays in cache:
# measured on Bamba-9B's mixer with 2 threads, against 64 tokens, and 16 to 64 heads. A GPU takes all heads.
_CPU_BLOCK, _CPU_HEADS = 32, 128
_GPU_BLOCK = 64

_UNDERFLOW = -87.0  # the exponential of less is no normal fp32 number, and slow to compute


def chunked(
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
    """The scan in torch, differentiable; see :class:`ssd_kernels.interface.SSD`.

    Computes in fp32 (fp64 for fp64 inputs); running sums of dt · A are fp64, so that the result is exact for any decay.
    Extra memory: dt in fp32, and some blocks of 32 tokens and 128 heads, however many there are; on a GPU, of 64 tokens
    and all heads. Packed sequences are scanned one by one, between bounds that the host reads.

    torch.compile takes it whole, as the operator `ssd_kernels::ssd_chunked`, unless a gradient or states at chunk ends
    are wanted: then it unrolls the loop over blocks, for each length anew.
    """
    sizes = check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state)
    with_grad = wants_gradient(inputs)
    if torch.compiler.is_compiling() and not (with_grad or return_chunk_states):
        both: tuple[Tensor, Tensor] = _whole(*inputs, chunk_size, dt_softplus, *dt_limit, cu_seqlens, carry)
        return both if return_final_state else both[0]
    if cu_seqlens is not None:
        return one_by_one(
            chunked, sizes, x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
            dt_limit=dt_limit, initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
            return_final_state=return_final_state, return_chunk_states=return_chunk_states,
        )  # fmt: skip
    dtype = state_dtype(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_state = torch.empty(sizes.state_shape, dtype=dtype, device=x.device)
    nchunks = -(-sizes.seqlen // chunk_size) if return_chunk_states else 0
    chunk_states = final_state.new_empty((sizes.batch, nchunks, *sizes.state_shape[1:]))
    step = discretise(dt, dt_bias, dt_softplus, dt_limit, dtype)
    multiply = torch.Tensor.mul if with_grad else torch.Tensor.mul_  # what the gradient needs is not overwritten
    heads_per_group = sizes.nheads // sizes.ngroups
    block, slab = _CPU_BLOCK, max(1, _CPU_HEADS // max(1, sizes.batch * sizes.ngroups))
    if x.is_cuda:
        block, slab = _GPU_BLOCK, heads_per_group
    for first in range(0, heads_per_group, slab):
        # Some heads of every group, (…, g, r, …): so that the groups' B and C serve them in one product.
        heads = slice(first, min(first + slab, heads_per_group))
        x_slab, y_slab = (_heads(tensor, 2, sizes.ngroups, heads) for tensor in (x, y))
        step_slab, A_slab = _heads(step, 2, sizes.ngroups, heads), _heads(A, 0, sizes.ngroups, heads)
        state = x.new_zeros((sizes.batch, sizes.ngroups, x_slab.shape[3] * sizes.headdim, sizes.d_state), dtype=dtype)
        if initial_state is not None:
            state = state + _heads(initial_state, 1, sizes.ngroups, heads).flatten(2, 3)
        if D is not None:
            D_slab = _heads(D.reshape(sizes.nheads, -1), 0, sizes.ngroups, heads).to(dtype)  # (g, r, p or 1)
        for tokens in _blocks(sizes.seqlen, chunk_size, block):
            if carry == "none" and tokens.start > 0 and tokens.start % chunk_size == 0:
                state = torch.zeros_like(state)
            x_block, B_block, C_block = (tensor[:, tokens].to(dtype) for tensor in (x_slab, B, C))
            y_block, state = _block(x_block, step_slab[:, tokens], A_slab, B_block, C_block, state, multiply)
            if D is not None:
                y_block = y_block.addcmul_(D_slab, x_block)
            y_slab[:, tokens] = y_block
            if return_chunk_states and (tokens.stop % chunk_size == 0 or tokens.stop == sizes.seqlen):
                ends = _heads(chunk_states[:, tokens.start // chunk_size], 1, sizes.ngroups, heads)
                ends.copy_(state.unflatten(2, (-1, sizes.headdim)))
        _heads(final_state, 1, sizes.ngroups, heads).copy_(state.unflatten(2, (-1, sizes.headdim)))
    return results(y, final_state, chunk_states, return_final_state, return_chunk_states)


@torch.library.custom_op("ssd_kernels::ssd_chunked", mutates_args=())
def _whole(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float,
    cu_seqlens: Tensor | None, carry: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A call with its final state; a graph with the loop over blocks in it would hold for one length only."""
    both = chunked(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
        dt_limit=(dt_low, dt_high), initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
        return_final_state=True,
    )  # fmt: skip
    return cast("tuple[Tensor, Tensor]", both)


def _fake(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float,
    cu_seqlens: Tensor | None, carry: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sizes = Sizes.of(x, B, cu_seqlens)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(sizes.state_shape, dtype=state_dtype(x))


_whole.register_fake(foreseen("ssd_chunked", _fake))


def _heads(tensor: Tensor, dim: int, ngroups: int, heads: slice) -> Tensor:
    """A view with the dimension of heads split in two, groups and the `heads` of each."""
    by_group: Tensor = tensor.unflatten(dim, (ngroups, -1))
    return by_group.narrow(dim + 1, heads.start, heads.stop - heads.start)


def _blocks(seqlen: int, chunk_size: int, block: int) -> Iterator[slice]:
    """Blocks of tokens, none of them across the end of a chunk."""
    for start in range(0, seqlen, chunk_size):
        stop = min(start + chunk_size, seqlen)
        yield from (slice(first, min(first + block, stop)) for first in range(start, stop, block))


def _block(
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """One block: y (b, q, g, r, p) like x, with step (b, q, g, r), A (g, r), and B and C (b, q, g, n).

    The state, entering and leaving, is (b, g, r·p, n), and y is made transposed, (b, g, r·p, q): on a CPU the products
    are a fifth to a half faster that way, copy nothing for one sequence, and the second adds itself to the first.
    """
    heads, headdim = x.shape[3:]
    B, C = B.transpose(1, 2), C.transpose(1, 2)  # (b, g, q, n)
    x = x * step[..., None]
    dA_cumsum = (step.double() * A.double()).cumsum(1).movedim(1, -1).contiguous()  # (b, g, r, q)

    # The difference is taken in fp64: sums of thousands of nats cancel here.
    exponent = (dA_cumsum[..., :, None] - dA_cumsum[..., None, :]).to(x.dtype)  # (b, g, r, q, q)
    # Above the diagonal anything finite will do, for C·B is zero there.
    weights = multiply(exponent.tril_().clamp_(min=_UNDERFLOW).exp_(), (C @ B.mT).tril_()[:, :, None])

    from_start = dA_cumsum.exp().to(x.dtype)
    y = (state @ C.mT).unflatten(2, (heads, headdim)).mul_(from_start[..., None, :])  # (b, g, r, p, q)
    y.flatten(0, 2).baddbmm_(x.permute(0, 2, 3, 4, 1).flatten(0, 2), weights.flatten(0, 2).mT)

    to_end = (dA_cumsum[..., -1:] - dA_cumsum).exp().to(x.dtype)
    x = multiply(x, to_end.movedim(-1, 1)[..., None]).permute(0, 2, 3, 4, 1)  # (b, g, r, p, q)
    state = multiply(state.unflatten(2, (heads, headdim)), from_start[..., -1:, None]).flatten(2, 3)
    state.flatten(0, 1).baddbmm_(x.flatten(2, 3).flatten(0, 1), B.flatten(0, 1))
    return y.mT.contiguous().permute(0, 3, 1, 2, 4), state
