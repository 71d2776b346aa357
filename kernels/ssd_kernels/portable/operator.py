"""The five stages as one torch operator, `ssd_kernels::ssd_scan`, that torch.compile takes whole."""

import math
import os
from typing import Any

import torch
from torch import Tensor

from ssd_kernels.interface import Sizes, check_inputs, state_dtype
from ssd_kernels.portable.bmm_chunk import bmm_chunk
from ssd_kernels.portable.chunk_cumsum import chunk_cumsum
from ssd_kernels.portable.chunk_scan import chunk_scan
from ssd_kernels.portable.chunk_state import chunk_state
from ssd_kernels.portable.plan import Plan
from ssd_kernels.portable.state_passing import state_passing

_library = torch.library.Library("ssd_kernels", "DEF")
_library.define(
    "ssd_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, Tensor? initial_state, "
    "int chunk_size, bool dt_softplus, float dt_low, float dt_high, str carry) -> (Tensor, Tensor)"
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
    """The scan in Triton, forward only; see :class:`ssd_kernels.interface.SSD`.

    Takes fp32, bf16 and fp16 inputs of any strides on a GPU, or on a CPU in Triton's interpreter.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: on `backward`; a gradient through this operator does not exist yet.
    """
    check_inputs(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_limit=dt_limit,
        initial_state=initial_state, cu_seqlens=cu_seqlens, carry=carry,
    )  # fmt: skip
    if cu_seqlens is not None or return_chunk_states or (D is not None and D.ndim == 2):
        raise NotImplementedError("cu_seqlens, return_chunk_states, D per channel: not supported by 'triton' yet")
    if x.dtype == torch.float64:
        raise TypeError("x: dtype must be float32, bfloat16 or float16 for 'triton', got torch.float64")
    if x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "x must be on a GPU for 'triton', got device cpu; on a CPU take 'chunked', or set TRITON_INTERPRET=1 "
            "before Python starts, to run the kernels in Triton's (slow) interpreter"
        )
    y, final_state = torch.ops.ssd_kernels.ssd_scan(
        x, dt, A, B, C, D, dt_bias, initial_state, chunk_size, dt_softplus, *dt_limit, carry
    )
    return (y, final_state) if return_final_state else y


def _ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    initial_state: Tensor | None, chunk_size: int, dt_softplus: bool, dt_low: float, dt_high: float, carry: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sizes = _sizes(x, B)
    plan = Plan(sizes=sizes, asked_chunk_size=chunk_size, carry=carry)
    if sizes.batch == 0 or sizes.seqlen == 0:
        zero = x.new_zeros(sizes.state_shape, dtype=torch.float32)
        return torch.empty_like(x), zero if initial_state is None else initial_state.clone()
    steps = chunk_cumsum(dt, A, dt_bias, dt_softplus, (dt_low, dt_high), plan)
    states = chunk_state(x, B, steps, plan)
    final_state = state_passing(states, steps, initial_state, plan)
    if not plan.independent:
        entering: Tensor | None = states
    else:
        entering = None if initial_state is None else initial_state[:, None]
    y = chunk_scan(x, C, D, steps, bmm_chunk(B, C, plan), entering, plan)
    return y, final_state


def _fake_ssd_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, x.new_empty(_sizes(x, B).state_shape, dtype=state_dtype(x))


def _no_backward(*_: Any) -> None:
    raise NotImplementedError(
        "ssd_kernels::ssd_scan has no backward yet: run it under torch.no_grad(), or take get_ssd('chunked'), "
        "which is differentiable"
    )


def _sizes(x: Tensor, B: Tensor) -> Sizes:
    batch, seqlen, nheads, headdim = x.shape
    return Sizes(batch=batch, seqlen=seqlen, nheads=nheads, headdim=headdim, ngroups=B.shape[2], d_state=B.shape[3])


for _key in ("CUDA", "CPU"):
    _library.impl("ssd_scan", _ssd_scan, _key)
torch.library.register_fake("ssd_kernels::ssd_scan", _fake_ssd_scan, lib=_library)
torch.library.register_autograd("ssd_kernels::ssd_scan", _no_backward, lib=_library)
