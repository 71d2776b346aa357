"""What an operator would launch on a GPU, found out without one.

The operator is called on fake tensors that say they are on a GPU: its launchers choose grids and configurations as they
would there, Triton specialises each kernel on the arguments, and a hook takes that specialisation instead of a launch.
"""

import ast
import importlib
import itertools
import pkgutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.runtime.jit import JITFunction

from tests.aot.launch import Launch
from tests.aot.targets import SHARED_MEMORY, TARGETS, Driver

PACKAGES = ("ssd_kernels.portable", "ssd_kernels.hopper")
BY_RULE = "ssd_kernels.by_rule"
OF_THE_MODEL = ("bamba.parallel.direct", "bamba.parallel.direct_step", "bamba.parallel.words")  # its only kernels


def launches(call: Callable[[], Any], target: str) -> list[Launch]:
    """The different specialisations that a call would launch on `target`, in the order of the launches."""
    seen: dict[Launch, None] = {}

    def take(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002 -- Triton's name
        specialization = compile["specialization_data"]
        seen[Launch(module=fn.module, kernel=fn.jit_function.fn.__qualname__, specialization=specialization)] = None
        return True  # there is nothing more to do: neither compile nor launch

    triton.runtime.driver.set_active(Driver(TARGETS[target]))
    address = mock.patch.object(FakeTensor, "data_ptr", lambda tensor: tensor.storage_offset() * tensor.itemsize)
    device = mock.patch.multiple(torch.cuda, _exchange_device=lambda _: 0, _maybe_exchange_device=lambda _: 0)
    # What the rules that choose kernels and configurations ask of a device.
    arch = TARGETS[target].arch
    asked = mock.patch.multiple(
        torch.cuda,
        get_device_capability=lambda _=None: divmod(arch, 10) if isinstance(arch, int) else (9, 4),
        get_device_properties=lambda _: SimpleNamespace(
            multi_processor_count=132, shared_memory_per_block_optin=SHARED_MEMORY[target]
        ),
        get_device_name=lambda _=None: target,
    )
    hip = mock.patch.object(torch.version, "hip", None if isinstance(arch, int) else "6.0")
    hook = mock.patch.object(knobs.runtime, "jit_cache_hook", take)
    with address, device, asked, hip, hook, FakeTensorMode(), _Views(), _AsOnAGPU():
        call()
    return list(seen)


def build(launch: Launch, target: str) -> Any:
    """Compile one specialisation for `target`."""
    triton.runtime.driver.set_active(Driver(TARGETS[target]))
    return _jitted[f"{launch.module}:{launch.kernel}"].preload(launch.specialization)


def kernels() -> set[str]:
    """Every `module:name` of the packages that a launcher has to launch: it is jitted and no other kernel calls it."""
    called = {
        node.id for function in _jitted.values() for node in ast.walk(function.parse()) if isinstance(node, ast.Name)
    }
    return {name for name, function in _jitted.items() if function.fn.__name__ not in called}


class _AsOnAGPU(TorchDispatchMode):
    """Gives fake tensors to an operator's implementation for GPUs, where torch would ask for the fake one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        implementation = _implementations.get(func._schema.name)
        if implementation is None:
            return func(*args, **(kwargs or {}))
        with self, _Views():
            return implementation(*args, **(kwargs or {}))


class _Views(TorchFunctionMode):
    """Indexes fake tensors, which torch 2.13 without CUDA refuses to (2.11 does not): by the strides of the view."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        view = torch.empty_strided(tensor.shape, tensor.stride(), device="meta")[index]
        return tensor.as_strided(view.shape, view.stride(), tensor.storage_offset() + view.storage_offset())


_implementations: dict[str, Callable[..., Any]] = {}  # by the name of the operator
_jitted: dict[str, JITFunction] = {}  # by module:name


def _load_package() -> None:
    """Import all modules of the packages, and note which function each operator runs on a GPU."""
    register = torch.library.Library.impl

    def note(library: Any, name: Any, function: Any, dispatch_key: str = "", **options: Any) -> Any:
        if dispatch_key in {"CUDA", "CompositeExplicitAutograd"}:
            short = (name if isinstance(name, str) else name.name()).rpartition("::")[2]
            _implementations[f"{library.ns}::{short.partition('.')[0]}"] = function
        return register(library, name, function, dispatch_key, **options)

    with mock.patch.object(torch.library.Library, "impl", note):
        packages = [importlib.import_module(name) for name in PACKAGES]
        importlib.import_module(BY_RULE)
        modules = [
            importlib.import_module(module.name)
            for package in packages
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        ]
        modules.extend(importlib.import_module(module) for module in OF_THE_MODEL)
    for value in itertools.chain.from_iterable(vars(module).values() for module in modules):
        if isinstance(value, JITFunction):
            _jitted[f"{value.module}:{value.fn.__qualname__}"] = value
    if not _implementations:
        raise RuntimeError(f"{PACKAGES} were imported before its operators could be noted; use a fresh process")
    if not _jitted:
        raise RuntimeError("the kernels are interpreted here: unset TRITON_INTERPRET")


_load_package()
