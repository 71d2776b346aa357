"""Launches of Triton kernels for a few microseconds of the host: what Triton would work out again is looked up.

`kernel[grid](…)` binds its arguments, specialises each and formats the options for every launch, in tens of
microseconds; all that only to find the compiled kernel again. Here it is found by the kind of each argument, which is
no coarser than what Triton tells apart.
"""

import marshal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ssd_kernels import ahead

# Kinds of arguments remembered of one kernel, and of tuples; where more come by, they are collected anew.
ROOM = 4096

_Kind = tuple[Any, ...]
Note = tuple[CompiledKernel, _Kind, tuple[int, ...], _Kind]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a kernel on the current device and stream, as `kernel[grid](*args, **constants)` does.

    The first launch of a kind goes through Triton, which compiles where it has to. So does every one in Triton's
    interpreter, of a kernel that is tuned or has hooks of its own, and with arguments beside tensors, numbers, None,
    tuples of integers, tuples of tensors or None, and :class:`Tiles`. The others call the compiled kernel, with
    Triton's launch hooks where anyone listens; what they leave out is Triton's check that no global variable the kernel
    reads has changed since it was compiled, and a change of its settings since. No address is kept.

    Args:
        kernel: what `triton.jit` or Gluon's made of a function whose constexpr parameters come last.
        grid: programs along up to three axes.
        *args: every parameter that is no constexpr, by position.
        **constants: every constexpr, by name, and options such as num_warps.
    """
    if not isinstance(kernel, JITFunction) or kernel.pre_run_hooks:
        kernel[grid](*_described(args), **constants)
        _note(None)
        return
    known = _known.get(id(kernel))
    if known is None:
        known = _known[id(kernel)] = _Known(kernel)
    device = driver.active.get_current_device()
    passed: list[Any] = []
    kind = known.kind(device, args, constants, passed)
    found = None if kind is None else known.compiled.get(kind)
    if found is None:
        ahead.finish()
        compiled = kernel[grid](*_described(args), **constants)
        # None where a hook of Triton's has taken the compilation over.
        if kind is not None and isinstance(compiled, CompiledKernel):
            found = known.remember(kind, compiled, constants)
        _note(None if found is None else (*found, grid, args))
        return
    compiled, ordered = found
    x, y, z = (*grid, 1, 1)[:3]
    stream = driver.active.get_current_stream(device)
    enter, leave, metadata = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, None
    if is_heard():
        metadata = compiled.launch_metadata((x, y, z), stream, *args, *ordered)
    else:
        enter = leave = None
    compiled.run(
        x, y, z, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *passed, *ordered
    )
    _note((compiled, ordered, grid, args))


def is_heard() -> bool:
    """Whether anyone listens to Triton's launches: by its hooks, or by a method put in the place of Triton's."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return _listens(enter) or _listens(leave) or CompiledKernel.launch_metadata is not _TRITONS_LAUNCH_METADATA


@contextmanager
def noted() -> Iterator[list["Note | None"]]:
    """Note this thread's launches: compiled kernel, its constants in order, grid, arguments; None where not known."""
    before = getattr(_here, "notes", None)
    notes: list[Note | None] = []
    _here.notes = notes
    try:
        yield notes
    finally:
        _here.notes = before


def forget() -> None:
    """Have the next launch of every kind go through Triton."""
    _known.clear()
    _kinds_of_tuples.clear()


class Tiles:
    """A tensor as TMA sees it: Triton's TensorDescriptor without its checks, which take as long as a launch.

    Triton's launcher reads `base`, `shape`, `strides` and the two options; `layout`, of a tile in shared memory, is for
    the first launch of a kind only, and has to follow from the tile and the dtype. The checks are made then.
    """

    __slots__ = ("base", "kind", "layout", "shape", "strides")
    padding = "zero"
    round_f32_to_tf32 = False

    def __init__(self, base: Any, shape: _Kind, strides: _Kind, block: _Kind, layout: Any) -> None:
        self.base, self.shape, self.strides, self.layout = base, shape, strides, layout
        self.kind = (base.dtype, block)

    def elsewhere(self, address: int) -> "Tiles":
        """The same of another tensor, for a compiled kernel."""
        tiles = Tiles.__new__(Tiles)
        tiles.base, tiles.shape, tiles.strides = _Address(address), self.shape, self.strides
        return tiles

    def described(self) -> Any:
        """The descriptor of Triton's."""
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

        return TensorDescriptor(self.base, list(self.shape), list(self.strides), list(self.kind[1]), self.layout)


class _Address:
    """What Triton's launcher asks of a descriptor's tensor."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        """The address of its first element."""
        return self.address


class _Known:
    """The compiled kernels of one kernel."""

    def __init__(self, kernel: JITFunction) -> None:
        self.kernel = kernel  # kept, or its id could become another's
        self.plain = tuple(parameter.do_not_specialize for parameter in kernel.params if not parameter.is_constexpr)
        self.constants = tuple(parameter.name for parameter in kernel.params if parameter.is_constexpr)
        self.compiled: dict[_Kind, tuple[CompiledKernel, _Kind]] = {}

    def kind(self, device: int, args: _Kind, constants: dict[str, Any], passed: list[Any]) -> _Kind | None:
        """What Triton compiles for, or None where that is not known here; `passed` gets what a compiled kernel takes.

        Tensors are passed by their address, which spares the driver a look at each.
        """
        kind = [device, len(args), *constants, *constants.values()]
        add, take = kind.append, passed.append
        for value, plain in zip(args, self.plain, strict=False):
            if value is None:
                add(None)
                take(None)
                continue
            of = type(value)
            if of is Tensor or of is Parameter:
                dtype, value = value.dtype, value.data_ptr()
                add((dtype,) if value & 15 else dtype)
            elif of is tuple:
                if value and (type(value[0]) is Tensor):
                    known, value = _kind_of_tensors(value)
                else:
                    known = _kind_of_integers(value)
                if known is None:
                    return None
                add(known)
            elif of is Tiles:
                add(value.kind)
            elif of is int:
                add(_width(value) if plain else _kind_of_int(value))
            elif of is float:
                add(float)
            else:
                return None
            take(value)
        return tuple(kind)

    def remember(
        self, kind: _Kind, compiled: CompiledKernel, constants: dict[str, Any]
    ) -> tuple[CompiledKernel, _Kind]:
        """Keep a compiled kernel, and the constants in the order of its parameters; returns both."""
        if len(self.compiled) >= ROOM:
            self.compiled.clear()
        defaults = {parameter.name: parameter.default for parameter in self.kernel.params if parameter.has_default}
        given = {**defaults, **constants}
        found = self.compiled[kind] = (compiled, tuple(given[name] for name in self.constants))
        return found


_here = threading.local()  # the notes that this thread takes
_known: dict[int, _Known] = {}  # by the kernel's id: a JITFunction's hash is one of its source
_kinds_of_tuples: dict[bytes, _Kind] = {}
_TRITONS_LAUNCH_METADATA = CompiledKernel.launch_metadata


def _described(args: _Kind) -> _Kind:
    """Arguments as Triton's own launch takes them."""
    return tuple(arg.described() if type(arg) is Tiles else arg for arg in args)


def _kind_of_tensors(values: _Kind) -> tuple[_Kind | None, _Kind]:
    """The kinds of tensors in a tuple, and their addresses; no kind of a tuple of anything but tensors and None."""
    kinds: list[Any] = [Tensor]
    addresses: list[Any] = []
    for value in values:
        of = type(value)
        if value is None:
            kinds.append(None)
            addresses.append(None)
        elif of is Tensor or of is Parameter:
            address = value.data_ptr()
            kinds.append((value.dtype,) if address & 15 else value.dtype)
            addresses.append(address)
        else:
            return None, values
    return tuple(kinds), tuple(addresses)


def _kind_of_integers(values: _Kind) -> _Kind | None:
    """As :func:`_kind_of_tuple`, looked up."""
    try:
        # Not by the tuple itself: (True,) and (1.0,) equal (1,).
        key = marshal.dumps(values, 2)
    except ValueError:
        return _kind_of_tuple(values)
    found = _kinds_of_tuples.get(key)
    if found is None:
        if len(_kinds_of_tuples) >= ROOM:
            _kinds_of_tuples.clear()
        found = _kind_of_tuple(values)
        if found is not None:
            _kinds_of_tuples[key] = found
    return found


def _kind_of_tuple(values: _Kind) -> _Kind | None:
    """The kinds of integers in a tuple, of tuples in it too; None for a tuple of anything else."""
    kinds: list[Any] = []
    for value in values:
        if type(value) is int:
            kinds.append(_kind_of_int(value))
        elif type(value) is tuple and (inner := _kind_of_tuple(value)) is not None:
            kinds.append(inner)
        else:
            return None
    return tuple(kinds)


def _kind_of_int(value: int) -> str | int:
    """What Triton makes of a number: 1 is a constant, and a multiple of 16 is known to be one."""
    if value == 1:
        return "1"
    return _width(value) if value & 15 else -_width(value)


def _width(value: int) -> int:
    """The bits that Triton passes a number in; 65 where it has a sign bit too many."""
    if -(2**31) <= value < 2**31:
        return 32
    return 64 if value < 2**63 else 65


def _note(note: Note | None) -> None:
    notes = getattr(_here, "notes", None)
    if notes is not None:
        notes.append(note)


def _listens(hook: Any) -> bool:
    """Whether anyone listens to one of Triton's launch hooks: a chain of functions, or what a user put in its place."""
    return hook is not None and bool(getattr(hook, "calls", True))
