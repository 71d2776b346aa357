"""The definition: the SSD recurrence token by token, in fp64. Imports torch only, so that an oracle needs no Triton.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ        y_t = h_t C_t + D x_t

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), equation 2. Slow on purpose: nothing is reordered.
"""

import math

import torch
from torch import Tensor

from ssd_kernels.interface import check_inputs, discretise, results, state_dtype
from ssd_kernels.packed import one_by_one


def recurrent(
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
    """The scan as its recurrence, in fp64 whatever the inputs; see :class:`ssd_kernels.interface.SSD`.

    To use it as an oracle pass fp64 inputs: then nothing is rounded on the way out either. The host reads `cu_seqlens`.
    """
    sizes = check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    if cu_seqlens is not None:
        return one_by_one(
            recurrent, sizes, x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
            dt_limit=dt_limit, initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
            return_final_state=return_final_state, return_chunk_states=return_chunk_states,
        )  # fmt: skip
    heads_per_group = sizes.nheads // sizes.ngroups
    x64 = x.double()
    step = discretise(dt, dt_bias, dt_softplus, dt_limit, torch.float64)  # (b, t, h)
    decay = torch.exp(step * A.double())
    B64 = B.double().repeat_interleave(heads_per_group, dim=2)  # (b, t, h, n)
    C64 = C.double().repeat_interleave(heads_per_group, dim=2)

    state = x64.new_zeros(sizes.state_shape) if initial_state is None else initial_state.double()
    outputs, chunk_states = [], []
    for t in range(sizes.seqlen):
        if carry == "none" and t > 0 and t % chunk_size == 0:
            state = torch.zeros_like(state)
        update = torch.einsum("bh,bhp,bhn->bhpn", step[:, t], x64[:, t], B64[:, t])
        state = decay[:, t, :, None, None] * state + update
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C64[:, t]))
        if (t + 1) % chunk_size == 0 or t + 1 == sizes.seqlen:
            chunk_states.append(state)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x64)
    ends = torch.stack(chunk_states, dim=1) if chunk_states else state[:, None][:, :0]
    if D is not None:
        y = y + D.double().reshape(sizes.nheads, -1) * x64
    dtype = state_dtype(x)
    return results(y.to(x.dtype), state.to(dtype), ends.to(dtype), return_final_state, return_chunk_states)
