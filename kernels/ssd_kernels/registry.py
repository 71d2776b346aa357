"""The one place where the implementation of an operator is chosen."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

from ssd_kernels.interface import SSD

_BUILT_IN = {
    "ssd": {
        "recurrent": "ssd_kernels.reference:recurrent",
        "chunked": "ssd_kernels.chunked:chunked",
        "triton": "ssd_kernels.by_rule:ssd",
        "portable": "ssd_kernels.portable:ssd",
        "hopper": "ssd_kernels.hopper:ssd",
    },
    "causal_conv1d": {
        "torch": "ssd_kernels.conv:causal_conv1d",
        "triton": "ssd_kernels.portable.causal_conv1d:causal_conv1d",
    },
    "causal_conv1d_step": {
        "torch": "ssd_kernels.conv:causal_conv1d_step",
        "triton": "ssd_kernels.portable.causal_conv1d_step:causal_conv1d_step",
    },
    "gated_rms_norm": {
        "torch": "ssd_kernels.norm:gated_rms_norm",
        "triton": "ssd_kernels.portable.gated_rms_norm:gated_rms_norm",
    },
    "rms_norm": {
        "torch": "ssd_kernels.mlp_interface:rms_norm",
        "triton": "ssd_kernels.portable.rms_norm:rms_norm",
    },
    "swiglu": {
        "torch": "ssd_kernels.mlp_interface:swiglu",
        "triton": "ssd_kernels.portable.swiglu:swiglu",
    },
    "attention_step": {
        "torch": "ssd_kernels.attention_interface:attention_step",
        "triton": "ssd_kernels.portable.attention_step:attention_step",
    },
    "linear_step": {
        "torch": "ssd_kernels.linear_interface:linear_step",
        "triton": "ssd_kernels.portable.linear_step:linear_step",
    },
    "ssd_step": {
        "torch": "ssd_kernels.step:ssd_step",
        "triton": "ssd_kernels.portable.ssd_step:ssd_step",
    },
    "mixer_step": {
        "torch": "ssd_kernels.step:mixer_step",
        "triton": "ssd_kernels.portable.mixer_step:mixer_step",
    },
}
OPERATORS = tuple(_BUILT_IN)
_IN_TRITON = ("triton", "portable", "hopper")
# What a first call imports on a Hopper GPU, and no other call does.
_FOR_HOPPER = {("ssd", name): ("ssd_kernels.hopper.launcher",) for name in ("triton", "hopper")}

# A dictionary, which torch.compile sees through, while it cannot import: what was looked up before can be compiled.
_found: dict[tuple[str, str], Callable[..., Any]] = {}


def names(operator: str = "ssd") -> tuple[str, ...]:
    """The names of an operator's implementations, besides `"package.module:function"`.

    Raises:
        ValueError: there is no such operator.
    """
    return tuple(_built_in(operator))


def default_name(device_type: str, operator: str = "ssd") -> str:
    """The name of the implementation that `ssd_kernels`' function of that name takes for tensors of `device_type`.

    Raises:
        ValueError: there is no such operator.
        NotImplementedError: there is no default for this kind of device.
    """
    default = {"cuda": "triton", "cpu": "chunked" if operator == "ssd" else "torch"}
    if device_type not in default:
        what, get = ("SSD", "get_ssd") if operator == "ssd" else (operator, "get_op")
        raise NotImplementedError(
            f"no default {what} implementation for device {device_type!r}; name one of {names(operator)} with {get}"
        )
    return default[device_type]


def get_ssd(name: str) -> SSD:
    """Look an implementation of the scan up by name.

    Args:
        name: `"recurrent"`, `"chunked"`, `"triton"`, `"portable"` or `"hopper"`, the one or the other of the kernels
            that `"triton"` takes, or `"package.module:function"` for anyone's callable that keeps the contract of
            :class:`ssd_kernels.interface.SSD`.

    Raises:
        ValueError: unknown name, or a module without such a callable.
        RuntimeError: the implementation cannot run here (no GPU). Nothing else is put in its place.
        ModuleNotFoundError: the named package is not installed.
    """
    return cast("SSD", get_op("ssd", name))


def get_op(operator: str, name: str) -> Callable[..., Any]:
    """Look an implementation of an operator up by name.

    Args:
        operator: one of :data:`OPERATORS`.
        name: one of `names(operator)`, or `"package.module:function"` for anyone's callable that keeps the operator's
            contract: :class:`ssd_kernels.interface.SSD`, :class:`ssd_kernels.conv_interface.CausalConv1d` and
            `CausalConv1dStep`, :class:`ssd_kernels.norm.GatedRMSNorm`, :class:`ssd_kernels.step_interface.SSDStep` and
            `MixerStep`, :class:`ssd_kernels.linear_interface.LinearStep`,
            :class:`ssd_kernels.attention_interface.AttentionStep`, :class:`ssd_kernels.mlp_interface.RMSNorm` and
            `SwiGLU`.

    Raises:
        ValueError: unknown operator or name, or a module without such a callable.
        RuntimeError: the implementation cannot run here (no GPU). Nothing else is put in its place.
        ModuleNotFoundError: the named package is not installed.
    """
    function = _found.get((operator, name))
    if function is None:
        module_name, _, function_name = target(operator, name).partition(":")
        if name in _IN_TRITON:  # before its import, which takes as long
            import_module("ssd_kernels.ahead").begin(*_FOR_HOPPER.get((operator, name), ()))
        function = getattr(import_module(module_name), function_name, None)
        if not callable(function):
            raise ValueError(f"name {name!r}: module {module_name!r} has no callable {function_name!r}")
        _found[operator, name] = function
    return function


def target(operator: str, name: str) -> str:
    """The `"package.module:function"` that a name stands for.

    Raises:
        ValueError: unknown operator or name.
    """
    built_in = _built_in(operator)
    found = built_in.get(name, name)
    module_name, separator, function_name = found.partition(":")
    if not (separator and module_name and function_name):
        raise ValueError(f"name must be one of {tuple(built_in)} or 'package.module:function', got {name!r}")
    return found


def _built_in(operator: str) -> dict[str, str]:
    if operator not in _BUILT_IN:
        raise ValueError(f"operator must be one of {OPERATORS}, got {operator!r}")
    return _BUILT_IN[operator]
