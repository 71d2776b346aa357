"""The scan in plain torch, block by block: what a CPU runs.

Within a block of tokens, with a the running sum of dt · A and h the state entering it:

    y_i = e^{a_i} h C_i + Σ_{j≤i} (C_i·B_j) e^{a_i − a_j} dt_j x_j + D x_i
    h ← e^{a_last} h + Σ_j e^{a_last − a_j} dt_j x_j B_jᵀ

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.reference`.
"""

import math

import torch
from torch import Tensor

from ssd_kernels.interface import check_inputs, discretise, state_dtype

# Tokens worked on at once. Small enough that the (nheads, block, block) weights stay in cache; measured on the
# Bamba-9B mixer shape with 2 threads, 64 is the fastest of 32, 64, 128 and 256.
_BLOCK = 64


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
    Extra memory: a few (batch, nheads, 64, 64) blocks, whatever seqlen and chunk_size.
    """
    sizes = check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    dtype = state_dtype(x)
    batch, ngroups, d_state = sizes.batch, sizes.ngroups, sizes.d_state
    # States are kept as (b, g, n, r·p), r heads a group: so two of the three matrix products need no copy.
    zero = x.new_zeros((batch, ngroups, d_state, sizes.nheads // ngroups * sizes.headdim), dtype=dtype)
    state = zero
    if initial_state is not None:
        state = initial_state.unflatten(1, (ngroups, -1)).flatten(2, 3).mT
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for start in range(0, sizes.seqlen, chunk_size):
        if carry == "none" and start > 0:
            state = zero
        stop = min(start + chunk_size, sizes.seqlen)
        for tokens in (slice(i, min(i + _BLOCK, stop)) for i in range(start, stop, _BLOCK)):
            step = discretise(dt[:, tokens], dt_bias, dt_softplus, dt_limit, dtype)
            x_block, B_block, C_block = (tensor[:, tokens].to(dtype) for tensor in (x, B, C))
            y_block, state = _block(x_block, step, A, B_block, C_block, state)
            y[:, tokens] = y_block if D is None else y_block.addcmul_(D.to(dtype)[:, None], x_block)
    if not return_final_state:
        return y
    return y, state.mT.unflatten(2, (-1, sizes.headdim)).flatten(1, 2).contiguous()


def _block(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One block of q tokens: y (b, q, h, p) and the state leaving it, (b, g, n, r·p)."""
    q, headdim, ngroups = x.shape[1], x.shape[3], B.shape[2]
    B, C = B.transpose(1, 2), C.transpose(1, 2)  # (b, g, q, n)
    x = x * step[..., None]
    dA_cumsum = (step.double() * A.double()).cumsum(1)  # (b, q, h)

    y = (C @ state).transpose(1, 2).reshape(x.shape) * dA_cumsum.exp().to(x.dtype)[..., None]

    by_head = dA_cumsum.transpose(1, 2).contiguous()
    # The difference is taken in fp64: sums of thousands of nats cancel here.
    exponent = (by_head[..., :, None] - by_head[..., None, :]).to(x.dtype)  # (b, h, q, q)
    future = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
    decay = exponent.masked_fill_(future, -math.inf).exp_()
    weights = (decay.unflatten(1, (ngroups, -1)) * (C @ B.mT)[:, :, None]).flatten(1, 2)
    y += (weights @ x.transpose(1, 2)).transpose(1, 2)

    to_end = (dA_cumsum[:, -1:] - dA_cumsum).exp().to(x.dtype)  # (b, q, h)
    x = (x * to_end[..., None]).flatten(2, 3).unflatten(2, (ngroups, -1)).transpose(1, 2)  # (b, g, q, r·p)
    kept = dA_cumsum[:, -1].exp().to(x.dtype).repeat_interleave(headdim, dim=1).unflatten(1, (ngroups, 1, -1))
    return y, state * kept + B.mT @ x
