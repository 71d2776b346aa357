"""What a call takes, without making it: which implementation, which kernels in which configuration, and why."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from ssd_kernels.attention_interface import check_attention_step
from ssd_kernels.conv_interface import check_conv, check_conv_step
from ssd_kernels.interface import check_inputs
from ssd_kernels.linear_interface import check_linear_step
from ssd_kernels.mlp_interface import check_rms_norm, check_swiglu
from ssd_kernels.norm import check_norm
from ssd_kernels.registry import default_name, get_op, names, target
from ssd_kernels.step_interface import check_mixer_step, check_ssd_step

_CHECKS: dict[str, Callable[..., Any]] = {
    "ssd": check_inputs,
    "causal_conv1d": check_conv,
    "causal_conv1d_step": check_conv_step,
    "gated_rms_norm": check_norm,
    "ssd_step": check_ssd_step,
    "mixer_step": check_mixer_step,
    "linear_step": check_linear_step,
    "attention_step": check_attention_step,
    "rms_norm": check_rms_norm,
    "swiglu": check_swiglu,
}


_OF_TRITON = ("triton", "portable", "hopper")


@dataclass(frozen=True, kw_only=True)
class KernelLaunch:
    """One launch of a call."""

    name: str
    config: dict[str, Any]  # tile sizes, num_warps, num_stages: pinned, and what a launch takes as keywords
    why: str

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.config.items())
        return f"{self.name}({settings}): {self.why}"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a call takes; its text has a line for each kernel."""

    operator: str
    implementation: str
    function: str  # "package.module:function"
    why: str
    kernels: tuple[KernelLaunch, ...]

    def __str__(self) -> str:
        lines = [f"{self.operator}: {self.implementation!r}, {self.function}: {self.why}"]
        return "\n  ".join([*lines, *map(str, self.kernels)])


def explain(operator: str, *args: Any, implementation: str | None = None, **kwargs: Any) -> Explanation:
    """What `ssd_kernels`' function named `operator` does with these arguments. Launches nothing.

    Args:
        operator: one of `ssd_kernels.OPERATORS`.
        *args: what the call takes.
        implementation: a name for :func:`ssd_kernels.get_op`; the default of the tensors' device by default.
        **kwargs: what the call takes.

    Raises:
        ValueError, TypeError, NotImplementedError, RuntimeError: the call itself would raise this; or there is no such
            operator or implementation.
    """
    device = _first_tensor(operator, args, kwargs).device.type
    name = default_name(device, operator) if implementation is None else implementation
    why = f"the default on {device}" if implementation is None else "asked for by name"
    found, function = target(operator, name), get_op(operator, name)
    if name not in names(operator):
        why += "; not of this package: what it launches is not known"
        return Explanation(operator=operator, implementation=name, function=found, why=why, kernels=())
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    _check(_CHECKS[operator], bound.arguments)
    kernels: tuple[KernelLaunch, ...] = ()
    if name in _OF_TRITON:
        reason, launches = _launches(operator, name, bound.arguments)
        kernels = tuple(KernelLaunch(name=kernel, config=config.kwargs, why=why_) for kernel, config, why_ in launches)
        why += reason if kernels else "; there is nothing to do"
    else:
        why += "; torch alone, no kernel of this package"
    return Explanation(operator=operator, implementation=name, function=found, why=why, kernels=kernels)


def _launches(operator: str, name: str, arguments: dict[str, Any]) -> tuple[str, list[Any]]:
    """Why these kernels, where there are others, and name, configuration and reason of each launch."""
    # Imported only here: the torch implementations run where there is no Triton.
    portable = import_module("ssd_kernels.portable.launches")
    if operator != "ssd" or name == "portable":
        return "", list(portable.LAUNCHES[operator](**arguments))
    if name == "triton":
        portable.expect_runnable("x", arguments["x"], instead="chunked")
    reason, launches = import_module("ssd_kernels.hopper.launches").ssd_launches(name, **arguments)
    return f"; {reason}", launches


def _check(check: Callable[..., Any], arguments: dict[str, Any]) -> None:
    check(**{name: arguments[name] for name in inspect.signature(check).parameters})


def _first_tensor(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    names(operator)  # an unknown operator is the first thing to say
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"{operator} takes tensors, got none")
