"""The decode step in plain torch: what a CPU runs.

Contracts and equations: :mod:`ssd_kernels.step_interface`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import expect_different_slots
from ssd_kernels.conv import causal_conv1d_step
from ssd_kernels.interface import discretise
from ssd_kernels.mixer import compose
from ssd_kernels.step_interface import check_ssd_step


def ssd_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    slots: Tensor | None = None,
) -> Tensor:
    """One token in torch; see :class:`ssd_kernels.step_interface.SSDStep`."""
    check_ssd_step(state, x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, dt_limit=dt_limit, slots=slots)
    expect_different_slots(slots, state.shape[0])
    batch, nheads = x.shape[:2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    before = state[:batch] if slots is None else state.index_select(0, slots)
    step = discretise(dt, dt_bias, dt_softplus, dt_limit, dtype)
    u = x.to(dtype)
    heads_per_group = nheads // B.shape[1]
    B, C = (part.to(dtype).repeat_interleave(heads_per_group, dim=1) for part in (B, C))  # (b, h, n)
    decay = torch.exp(step * A.to(dtype))[..., None, None]
    # A state of the right dtype is worked on where it lies.
    h = before.mul_(decay) if slots is None and state.dtype == dtype else before.to(dtype) * decay
    h = h.addcmul_((step[..., None] * u)[..., None], B[:, :, None, :])
    y = (h @ C[..., None])[..., 0]
    if D is not None:
        y = y + D.to(dtype).reshape(nheads, -1) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    if slots is not None:
        state.index_copy_(0, slots.long(), h.to(state.dtype))
    elif state.dtype != dtype:
        before.copy_(h)
    return y.to(x.dtype).contiguous()


mixer_step = compose(causal_conv1d_step, ssd_step)
