"""The scan in plain torch, block by block: what a CPU runs.

Within a block of tokens, with a the running sum of dt · A and h the state entering it:

    y_i = e^{a_i} h C_i + Σ_{j≤i} (C_i·B_j) e^{a_i − a_j} dt_j x_j + D x_i
    h ← e^{a_last} h + Σ_j e^{a_last − a_j} dt_j x_j B_jᵀ

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.reference`.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ssd_kernels.interface import check_inputs, discretise, state_dtype

# Tokens, and on a CPU heads (of all sequences and groups together), worked on at once, so that what they need stays in
# cache: measured on Bamba-9B's mixer with 1 and 2 threads against 32 tokens, and 64 and 128 heads.
_BLOCK = 64
_HEADS = 32

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
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan in torch, differentiable; see :class:`ssd_kernels.interface.SSD`.

    Computes in fp32 (fp64 for fp64 inputs); running sums of dt · A are fp64, so that the result is exact for any decay.
    Extra memory: some (32, 64, 64) blocks, however many tokens and heads; on a GPU, which takes all heads at once, some
    (batch · nheads, 64, 64) blocks.
    """
    sizes = check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    dtype = state_dtype(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_state = torch.empty(sizes.state_shape, dtype=dtype, device=x.device)
    step = discretise(dt, dt_bias, dt_softplus, dt_limit, dtype)
    heads_per_group = sizes.nheads // sizes.ngroups
    slab = heads_per_group if x.is_cuda else max(1, _HEADS // max(1, sizes.batch * sizes.ngroups))
    for first in range(0, heads_per_group, slab):
        # Some heads of every group, (…, g, r, …): so that the groups' B and C serve them in one product.
        heads = slice(first, min(first + slab, heads_per_group))
        x_slab, y_slab = (_heads(tensor, 2, sizes.ngroups, heads) for tensor in (x, y))
        step_slab, A_slab = _heads(step, 2, sizes.ngroups, heads), _heads(A, 0, sizes.ngroups, heads)
        zero = x.new_zeros((sizes.batch, sizes.ngroups, sizes.d_state, x_slab.shape[3] * sizes.headdim), dtype=dtype)
        state = zero
        if initial_state is not None:
            state = _heads(initial_state, 1, sizes.ngroups, heads).flatten(2, 3).mT
        for tokens in _blocks(sizes.seqlen, chunk_size):
            if carry == "none" and tokens.start > 0 and tokens.start % chunk_size == 0:
                state = zero
            x_block, B_block, C_block = (tensor[:, tokens].to(dtype) for tensor in (x_slab, B, C))
            y_block, state = _block(x_block, step_slab[:, tokens], A_slab, B_block, C_block, state)
            if D is not None:
                y_block = y_block.addcmul_(_heads(D, 0, sizes.ngroups, heads).to(dtype)[..., None], x_block)
            y_slab[:, tokens] = y_block
        _heads(final_state, 1, sizes.ngroups, heads).copy_(state.mT.unflatten(2, (-1, sizes.headdim)))
    return (y, final_state) if return_final_state else y


def _heads(tensor: Tensor, dim: int, ngroups: int, heads: slice) -> Tensor:
    """A view with the dimension of heads split in two, groups and the `heads` of each."""
    by_group: Tensor = tensor.unflatten(dim, (ngroups, -1))
    return by_group.narrow(dim + 1, heads.start, heads.stop - heads.start)


def _blocks(seqlen: int, chunk_size: int) -> Iterator[slice]:
    """Blocks of tokens, none of them across the end of a chunk."""
    for start in range(0, seqlen, chunk_size):
        stop = min(start + chunk_size, seqlen)
        yield from (slice(first, min(first + _BLOCK, stop)) for first in range(start, stop, _BLOCK))


def _block(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One block: y (b, q, g, r, p) like x, with step (b, q, g, r), A (g, r), and B and C (b, q, g, n).

    The state, entering and leaving, is (b, g, n, r·p): two of the three products need no copy in that layout.
    """
    heads = x.shape[3:]  # (r, p)
    B, C = B.transpose(1, 2), C.transpose(1, 2)  # (b, g, q, n)
    x = x * step[..., None]
    dA_cumsum = (step.double() * A.double()).cumsum(1)  # (b, q, g, r)

    y = (C @ state).transpose(1, 2).unflatten(3, heads) * dA_cumsum.exp().to(x.dtype)[..., None]

    by_head = dA_cumsum.movedim(1, -1).contiguous()
    # The difference is taken in fp64: sums of thousands of nats cancel here.
    exponent = (by_head[..., :, None] - by_head[..., None, :]).to(x.dtype)  # (b, g, r, q, q)
    # Above the diagonal anything finite will do, for C·B is zero there.
    decay = exponent.tril_().clamp_(min=_UNDERFLOW).exp_()
    weights = decay * (C @ B.mT).tril_()[:, :, None]
    y += (weights @ x.movedim(1, 3)).movedim(3, 1)

    to_end = (dA_cumsum[:, -1:] - dA_cumsum).exp().to(x.dtype)
    x = (x * to_end[..., None]).flatten(3).transpose(1, 2).flatten(0, 1)  # (b·g, q, r·p)
    kept = dA_cumsum[:, -1].exp().to(x.dtype).repeat_interleave(heads[1], dim=-1)[:, :, None]  # (b, g, 1, r·p)
    state = (state * kept).flatten(0, 1).baddbmm_(B.mT.flatten(0, 1), x)
    return y, state.view(*B.shape[:2], *state.shape[1:])
