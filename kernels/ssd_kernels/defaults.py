"""Each operator's default: Triton where the tensors are on a GPU, torch where they are on a CPU.

:func:`ssd_kernels.registry.default_name` decides, and raises NotImplementedError for any other device;
:func:`ssd_kernels.explain.explain` tells. A default is fixed by the device alone: what its implementation does not
support is an error, and no other takes its place. torch.compile takes whole what has been looked up before, by
:func:`ssd_kernels.get_op` or by a call.
"""

from typing import Any

from torch import Tensor

from ssd_kernels.checks import expect_tensor
from ssd_kernels.registry import default_name, get_op


def ssd(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
    """The scan; takes and returns what :class:`ssd_kernels.interface.SSD` says."""
    return _default("ssd", "x", x)(x, *args, **kwargs)  # type: ignore[no-any-return]


def causal_conv1d(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
    """The causal convolution; takes and returns what :class:`ssd_kernels.conv_interface.CausalConv1d` says."""
    return _default("causal_conv1d", "x", x)(x, *args, **kwargs)  # type: ignore[no-any-return]


def causal_conv1d_step(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Its step; takes and returns what :class:`ssd_kernels.conv_interface.CausalConv1dStep` says."""
    return _default("causal_conv1d_step", "x", x)(x, *args, **kwargs)  # type: ignore[no-any-return]


def gated_rms_norm(y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The gated norm; takes and returns what :class:`ssd_kernels.norm.GatedRMSNorm` says."""
    return _default("gated_rms_norm", "y", y)(y, *args, **kwargs)  # type: ignore[no-any-return]


def ssd_step(state: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The scan's step; takes and returns what :class:`ssd_kernels.step_interface.SSDStep` says."""
    return _default("ssd_step", "state", state)(state, *args, **kwargs)  # type: ignore[no-any-return]


def mixer_step(xBC: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A mixer's step; takes and returns what :class:`ssd_kernels.step_interface.MixerStep` says."""
    return _default("mixer_step", "xBC", xBC)(xBC, *args, **kwargs)  # type: ignore[no-any-return]


def linear_step(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A few tokens' projection; takes and returns what :class:`ssd_kernels.linear_interface.LinearStep` says."""
    return _default("linear_step", "x", x)(x, *args, **kwargs)  # type: ignore[no-any-return]


def attention_step(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A token's attention; takes and returns what :class:`ssd_kernels.attention_interface.AttentionStep` says."""
    return _default("attention_step", "q", q)(q, *args, **kwargs)  # type: ignore[no-any-return]


def rms_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """RMSNorm; takes and returns what :class:`ssd_kernels.mlp_interface.RMSNorm` says."""
    return _default("rms_norm", "x", x)(x, *args, **kwargs)  # type: ignore[no-any-return]


def swiglu(gate: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The gate of an MLP; takes and returns what :class:`ssd_kernels.mlp_interface.SwiGLU` says."""
    return _default("swiglu", "gate", gate)(gate, *args, **kwargs)  # type: ignore[no-any-return]


def _default(operator: str, name: str, tensor: Tensor) -> Any:
    expect_tensor(name, tensor)
    return get_op(operator, default_name(tensor.device.type, operator))
