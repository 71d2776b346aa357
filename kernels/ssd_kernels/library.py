"""How a launcher becomes an operator of torch's, and what every Triton operator refuses."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from triton.runtime import driver

from ssd_kernels.checks import expect_tensor
from ssd_kernels.inductor import foreseen
from ssd_kernels.watching import is_watched

_library = torch.library.Library("ssd_kernels", "FRAGMENT")
_runs: dict[str, Callable[..., Any]] = {}
_taken: dict[str, set[tuple[type, ...]]] = {}  # types of arguments, of which no two may be converted
_TENSORS: tuple[type, ...] = (Tensor, Parameter)
_TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": _TENSORS, "Optional[Tensor]": (*_TENSORS, type(None)), "float": (float,), "int": (int,), "bool": (bool,),
    "str": (str,),
}  # fmt: skip
_NOTHING: AbstractContextManager[Any] = nullcontext()

_INSTEAD = "take the implementation 'torch'"


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define `ssd_kernels::name`, which torch.compile takes whole; `fake` makes outputs without values.

    Torch asks a formula for `backward` at every call, for as long as a launch: it has none, and :func:`call`, by which
    alone it is called, refuses.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    for key in ("CUDA", "CPU"):
        _library.impl(name, run, key)
    _runs[name] = run
    _taken[name] = set()
    torch.library.register_fake(f"ssd_kernels::{name}", foreseen(name, fake), lib=_library)


def call(name: str, *args: Any, instead: str = _INSTEAD) -> Any:
    """What an operator of ours makes of its arguments; a `backward` through it raises.

    Where nobody watches, its function is called without the dispatcher, which takes longer than a launch.

    Args:
        name: `ssd_kernels::name`.
        *args: its arguments.
        instead: what the error says to do.
    """
    operator = getattr(torch.ops.ssd_kernels, name)
    if not is_watched() and _are_taken(name, args):
        operator = _runs[name]
    if not torch.is_grad_enabled():
        return operator(*args)
    wanted = [each for each in args if isinstance(each, Tensor) and each.requires_grad]
    if not wanted:
        return operator(*args)
    with torch.no_grad():
        results = operator(*args)
    if isinstance(results, Tensor):
        return _NoBackward.apply(name, instead, 1, results, *wanted)[0]  # type: ignore[no-untyped-call]
    return _NoBackward.apply(name, instead, len(results), *results, *wanted)  # type: ignore[no-untyped-call]


def _are_taken(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operator's function takes these arguments just as the dispatcher would pass them on: plain, here."""
    types = tuple(map(type, args))
    taken = _taken[name]
    if types not in taken:
        schema = getattr(torch.ops.ssd_kernels, name).default._schema.arguments
        if len(schema) != len(types) or any(
            of not in _TYPES.get(str(argument.type), ()) for of, argument in zip(types, schema, strict=True)
        ):
            return False
        taken.add(types)
    for arg, of in zip(args, types, strict=True):
        if (of is Tensor or of is Parameter) and (
            not (arg.is_cuda or arg.is_cpu) or arg.is_neg() or arg._is_zerotensor() or arg.layout is not torch.strided
        ):
            return False
    return True


def expect_runnable(name: str, tensor: Tensor, *, instead: str = "torch") -> None:
    """Expect what the kernels can work on here; `instead` is the implementation for a CPU.

    Raises:
        TypeError: fp64, or no tensor.
        RuntimeError: a tensor on a CPU, and Triton's interpreter is off.
    """
    expect_tensor(name, tensor)
    if tensor.dtype == torch.float64:
        raise TypeError(f"{name}: dtype must be float32, bfloat16 or float16 for 'triton', got torch.float64")
    if tensor.is_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"{name} must be on a GPU for 'triton', got device cpu; on a CPU take {instead!r}, or set "
            "TRITON_INTERPRET=1 before Python starts, to run the kernels in Triton's (slow) interpreter"
        )


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the device of a tensor the current one, if it is not: Triton launches there."""
    if not tensor.is_cuda or tensor.device.index == driver.active.get_current_device():
        return _NOTHING
    return torch.cuda.device(tensor.device)


class _NoBackward(torch.autograd.Function):
    """Passes its first tensors on as if they depended on the others."""

    @staticmethod
    def forward(ctx: Any, name: str, instead: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name, ctx.instead = name, instead
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        _refuse(ctx.name, ctx.instead)


def _refuse(name: str, instead: str) -> None:
    raise NotImplementedError(f"ssd_kernels::{name} has no backward yet: run it under torch.no_grad(), or {instead}")
