"""The one place where an SSD implementation is chosen."""

from functools import cache
from importlib import import_module
from typing import Any, cast

from torch import Tensor

from ssd_kernels.interface import SSD

_BUILT_IN = {
    "recurrent": "ssd_kernels.reference:recurrent",
    "chunked": "ssd_kernels.chunked:chunked",
    "triton": "ssd_kernels.portable:ssd",
}
_DEFAULT = {"cuda": "triton", "cpu": "chunked"}


def ssd(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
    """The default implementation of the device of `x`: Triton on a GPU, torch on a CPU.

    Takes and returns what :class:`ssd_kernels.interface.SSD` says.
    """
    return get_ssd(default_name(x.device.type))(x, *args, **kwargs)


def names() -> tuple[str, ...]:
    """The names that :func:`get_ssd` knows, besides `"package.module:function"`."""
    return tuple(_BUILT_IN)


def default_name(device_type: str) -> str:
    """The name of the implementation that :func:`ssd` takes for tensors of `device_type`.

    Raises:
        NotImplementedError: there is no default for this kind of device.
    """
    if device_type not in _DEFAULT:
        raise NotImplementedError(
            f"no default SSD implementation for device {device_type!r}; name one of {names()} with get_ssd"
        )
    return _DEFAULT[device_type]


@cache
def get_ssd(name: str) -> SSD:
    """Look an implementation up by name.

    Args:
        name: `"recurrent"`, `"chunked"`, `"triton"`, or `"package.module:function"` for anyone's callable that keeps
            the contract of :class:`ssd_kernels.interface.SSD`.

    Raises:
        ValueError: unknown name, or a module without such a callable.
        RuntimeError: the implementation cannot run here (no GPU). Nothing else is put in its place.
        ModuleNotFoundError: the named package is not installed.
    """
    target = _BUILT_IN.get(name, name)
    module_name, separator, function_name = target.partition(":")
    if not (separator and module_name and function_name):
        raise ValueError(f"name must be one of {names()} or 'package.module:function', got {name!r}")
    function = getattr(import_module(module_name), function_name, None)
    if not callable(function):
        raise ValueError(f"name {name!r}: module {module_name!r} has no callable {function_name!r}")
    return cast("SSD", function)
