"""flash-linear-attention's scan, `fla.ops.simple_gla.chunk.chunk_simple_gla`, with our signature.

    S_t = exp(g_t) S_{t-1} + k_t v_tᵀ        o_t = scale · S_tᵀ q_t

with q = C, k = B, v = dt x, g = dt A and a scale of 1. The step, dt x and the skip connection D x are computed in
torch; groups are written out for every head.
"""

import importlib
import math

import torch
from torch import Tensor

from ssd_kernels.interface import check_inputs, discretise

RUNS = (
    "fla.ops.simple_gla.chunk:chunk_simple_gla_fwd",
    "fla.ops.common.chunk_h:chunk_fwd_h",
    "fla.ops.common.chunk_o:chunk_fwd_o",
)


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
    """The scan by flash-linear-attention; see :class:`ssd_kernels.interface.SSD`.

    Raises:
        NotImplementedError: fp64, a carry other than `"all"`, states at chunk ends, a chunk size that is no power of
            2 or that is below 16, which its products in Triton do not take.
    """
    check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    if x.dtype == torch.float64:
        raise NotImplementedError("x: flash-linear-attention has no scan in float64")
    if carry != "all":
        raise NotImplementedError(f"carry must be 'all' for flash-linear-attention, got {carry!r}")
    if return_chunk_states:
        raise NotImplementedError("return_chunk_states: flash-linear-attention does not return states at chunk ends")
    if chunk_size < 16 or chunk_size & (chunk_size - 1):
        raise NotImplementedError(
            f"chunk_size must be a power of 2 and at least 16 for flash-linear-attention, got {chunk_size}"
        )
    step = discretise(dt, dt_bias, dt_softplus, dt_limit, torch.float32)
    heads_per_group = x.shape[2] // B.shape[2]
    y, final_state = _chunk.chunk_simple_gla(
        q=C.repeat_interleave(heads_per_group, dim=2),
        k=B.repeat_interleave(heads_per_group, dim=2),
        v=(step[..., None] * x).to(x.dtype),
        g=step * A.float(),
        scale=1.0,
        initial_state=initial_state,
        output_final_state=return_final_state,
        state_v_first=True,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens.long(),
        chunk_size=chunk_size,
    )
    if D is not None:
        y = (y + D.float().reshape(x.shape[2], -1) * x).to(x.dtype)
    return (y, final_state) if return_final_state else y


_chunk = importlib.import_module("fla.ops.simple_gla.chunk")
