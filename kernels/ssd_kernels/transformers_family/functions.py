"""What takes the place of transformers' functions: the same arguments, this package's operators.

Each falls back to the function it replaces where that is called in a form that no mixer of the family uses.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import wants_gradient
from ssd_kernels.interface import state_dtype
from ssd_kernels.registry import default_name, get_op
from ssd_kernels.transformers_family.packing import cu_seqlens_of, last_of_rows, row_starts

IMPLEMENTATIONS = ("auto", "triton", "torch")


def replacement(name: str, original: Callable[..., Any], implementation: str) -> Callable[..., Any]:
    """The function for `name`, one of those below, that answers like `original` in its place."""
    function = _FUNCTIONS[name]

    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return function(original, implementation, *args, **kwargs)

    return replaced


def _op(operator: str, implementation: str, *tensors: Any) -> Any:
    """An operator's implementation for these tensors: the differentiable one where a gradient is wanted."""
    torchs = "chunked" if operator == "ssd" else "torch"
    if implementation == "torch" or wants_gradient(tensors):
        return get_op(operator, torchs)
    if implementation == "triton":
        return get_op(operator, "triton")
    return get_op(operator, default_name(tensors[0].device.type, operator))


def _activated(y: Tensor, activation: str | None) -> Tensor:
    """What the convolution has not applied itself."""
    if activation is None or _own(activation):
        return y
    from transformers.activations import ACT2FN

    return ACT2FN[activation](y)  # type: ignore[no-any-return]


def _own(activation: str | None) -> str | None:
    """The activation as the convolution knows it, None where it does not."""
    return "silu" if activation in ("silu", "swish") else None


def _conv(
    original: Callable[..., Any], implementation: str, hidden_states: Tensor, weight: Tensor,
    bias: Tensor | None = None, activation: str | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Of `hidden_states` (batch, channels, seqlen), in which a token's channels are adjacent."""
    x = hidden_states.transpose(1, 2)
    cu_seqlens = cu_seqlens_of(kwargs, *x.shape[:2])
    conv = _op("causal_conv1d", implementation, x, weight, bias)
    if cu_seqlens is None:
        y = conv(x, weight, bias, activation=_own(activation))
    else:
        y = conv(x.flatten(0, 1)[None], weight, bias, activation=_own(activation), cu_seqlens=cu_seqlens).view(x.shape)
    return _activated(y, activation).transpose(1, 2)


def _conv_step(
    original: Callable[..., Any], implementation: str, hidden_states: Tensor, conv_state: Tensor, weight: Tensor,
    bias: Tensor | None = None, activation: str | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Of one token, (batch, channels, 1); `conv_state` (batch, channels, width) has one input more than is needed."""
    width = weight.shape[1]
    fits = hidden_states.shape[-1] == 1 and conv_state.shape[-1] == width and conv_state.dtype == hidden_states.dtype
    if not fits or wants_gradient((hidden_states, conv_state)):
        return original(hidden_states, conv_state, weight, bias, activation, **kwargs)  # type: ignore[no-any-return]
    step = _op("causal_conv1d_step", implementation, hidden_states, weight, bias)
    conv_state[..., 0] = conv_state[..., 1]
    y = step(hidden_states[..., 0], conv_state[..., 1:], weight, bias, activation=_own(activation))
    return _activated(y, activation)[..., None]


def _scan(
    original: Callable[..., Any], implementation: str, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor,
    C: Tensor, chunk_size: int, D: Tensor | None = None, dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None, dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")), return_final_states: bool = False, z: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    batch, seqlen = hidden_states.shape[:2]
    scan = _op("ssd", implementation, hidden_states, dt, A, B, C, D, dt_bias, initial_states)
    cu_seqlens = cu_seqlens_of(kwargs, batch, seqlen)
    x, states = hidden_states, None if initial_states is None else initial_states.to(state_dtype(hidden_states))
    if cu_seqlens is not None:
        x, dt, B, C = (each.flatten(0, 1)[None] for each in (x, dt, B, C))
        states = row_starts(states, cu_seqlens, seqlen)
    y, final_state = scan(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus,
        dt_limit=tuple(map(float, dt_limit)), initial_state=states, cu_seqlens=cu_seqlens, return_final_state=True,
    )  # fmt: skip
    y = y.view(hidden_states.shape)
    if z is not None:
        y = y * F.silu(z)
    if not return_final_states:
        return y  # type: ignore[no-any-return]
    return y, final_state if cu_seqlens is None else last_of_rows(final_state, cu_seqlens, batch, seqlen)


def _step(
    original: Callable[..., Any], implementation: str, state: Tensor, hidden_states: Tensor, dt: Tensor, A: Tensor,
    B: Tensor, C: Tensor, D: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False,
    z: Tensor | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Of one token: dt, A, D and dt_bias are one number a head, expanded to its channels."""
    repeated = _repeats(dt, 1) and _repeats(A, 2) and _repeats(D, 1) and _repeats(dt_bias, 1)
    if not repeated or wants_gradient((state, hidden_states, dt, A, B, C, D, dt_bias, z)):
        return original(  # type: ignore[no-any-return]
            state, hidden_states, dt, A, B, C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z, **kwargs
        )
    step = _op("ssd_step", implementation, state)
    return step(  # type: ignore[no-any-return]
        state, hidden_states, dt[..., 0], A[..., 0, 0], B, C, D=None if D is None else D[..., 0], z=z,
        dt_bias=None if dt_bias is None else dt_bias[..., 0], dt_softplus=dt_softplus,
    )  # fmt: skip


def _norm(
    original: Callable[..., Any], implementation: str, norm: Any, hidden_states: Tensor, gate: Tensor | None = None
) -> Tensor:
    """Of a gated norm's module, in the place of its `forward`."""
    if gate is None or hasattr(norm, "norm_before_gate"):
        return original(norm, hidden_states, gate)  # type: ignore[no-any-return]
    width = hidden_states.shape[-1]
    groups = width // getattr(norm, "group_size", width)
    function = _op("gated_rms_norm", implementation, hidden_states, gate, norm.weight)
    return function(  # type: ignore[no-any-return]
        hidden_states, gate, norm.weight, eps=norm.variance_epsilon, groups=groups
    )


def _repeats(tensor: Tensor | None, dimensions: int) -> bool:
    """Whether the last dimensions of a tensor that is given repeat one number."""
    if tensor is None:
        return True
    last = zip(tensor.stride()[-dimensions:], tensor.shape[-dimensions:], strict=True)
    return all(stride == 0 or size == 1 for stride, size in last)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _conv,
    "causal_conv1d_update": _conv_step,
    "mamba2_chunk_scan": _scan,
    "mamba2_selective_state_update": _step,
    "norm": _norm,
}
