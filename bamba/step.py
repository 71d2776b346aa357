"""One token of the state-space recurrence, written as it is defined.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ        y_t = h_t C_t + D x_t

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060). Reference: `ssd_kernels.get_ssd("recurrent")`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    dt_bias: Tensor,
    dt_limit: tuple[float, float],
) -> Tensor:
    """Advance the state space by one token, in the dtype of the state.

    Args:
        state: (batch, nheads, headdim, d_state), fp32 or fp64; updated in place.
        x: (batch, nheads, headdim).
        dt: (batch, nheads), before bias, softplus and clamp.
        A: (nheads,), negative.
        B: (batch, ngroups, d_state).
        C: as B.
        D: (nheads,), the skip connection.
        dt_bias: (nheads,).
        dt_limit: (low, high), the clamp of the step.

    Returns:
        y, (batch, nheads, headdim) in the dtype of x.
    """
    heads_per_group = x.shape[1] // B.shape[1]
    step = F.softplus(dt.to(state.dtype) + dt_bias.to(state.dtype)).clamp(*dt_limit)
    B = B.to(state.dtype).repeat_interleave(heads_per_group, dim=1)  # (b, h, n)
    C = C.to(state.dtype).repeat_interleave(heads_per_group, dim=1)
    u = x.to(state.dtype)
    state.mul_(torch.exp(step * A.to(state.dtype))[..., None, None])
    state.addcmul_((step[..., None] * u)[..., None], B[:, :, None, :])
    y = torch.einsum("bhpn,bhn->bhp", state, C) + D.to(state.dtype)[:, None] * u
    return y.to(x.dtype)
