"""A call that launches several kernels, repeated: all that its arguments decide but addresses is noted once.

A launch through :mod:`ssd_kernels.launching` still works out strides, constants and descriptors, and asks for the kind
of every argument. A call whose tensors have the shapes, strides, dtypes and alignments of one before, on the same
device and with the same options, launches the same compiled kernels on the same grids with the same numbers.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from inspect import getattr_static
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ssd_kernels import launching
from ssd_kernels.calls import Call

# Calls remembered of one launcher; where more come by, they are collected anew.
ROOM = 4096

_Inputs = Sequence[Tensor | None]
_Kind = tuple[Any, ...]


# Called of each tensor by map, which takes half as long as a loop of Python's.
_address, _device, _is_negated = Tensor.data_ptr, Tensor.get_device, Tensor.is_neg
_is_contiguous, _strides = Tensor.is_contiguous, Tensor.stride
_shape, _dtype, _requires_grad = (getattr_static(Tensor, name).__get__ for name in ("shape", "dtype", "requires_grad"))
_PLAIN = {Tensor, Parameter, type(None)}


def kind_of(inputs: _Inputs, options: _Kind, addresses: list[int], *, differentiable: bool) -> _Kind | None:
    """What decides a call but for addresses, which are appended, of None none; None of what is no plain memory.

    That is a subclass of torch's tensors, a tensor elsewhere than the others, one without memory, one whose values are
    those of its memory negated; and, where `differentiable`, one that requires a gradient. Strides are told apart where
    they matter: a contiguous tensor has those of its shape, but for dimensions of one element.
    """
    types = tuple(map(type, inputs))
    if types not in _plain:
        if not _PLAIN.issuperset(types):
            return None
        _plain.add(types)
    given = [tensor for tensor in inputs if tensor is not None]
    try:
        at = [*map(_address, given)]
        contiguous = [*map(_is_contiguous, given)]
        devices = {*map(_device, given)}
        strides = tuple(map(_strides, given)) if False in contiguous else None
    except (RuntimeError, NotImplementedError):  # one without strides or memory
        return None
    if 0 in at or len(devices) > 1 or True in map(_is_negated, given):
        return None
    if differentiable and True in map(_requires_grad, given):
        return None
    addresses += at
    bits = 0
    for address in at:
        bits |= address
    aligned = tuple([address & 15 for address in at]) if bits & 15 else None
    return options, types, aligned, strides, *devices, *map(_shape, given), *map(_dtype, given)


class Remembered:
    """Calls remembered in one place, until :func:`forget`, by the kind of their arguments.

    Of each set of options the last call is tried first, by the guards that torch.compile has of tensors: where they are
    as they were, to the strides and the mode of autograd, that is known in a tenth of the time that :func:`kind_of`
    takes. The guards are no part of torch's interface; where they are missing, the kind decides alone.
    """

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call] = {}
        self._last: dict[Hashable, Call] = {}
        _everywhere.append(self)

    def find(
        self, inputs: _Inputs, options: _Kind, addresses: list[int], *, differentiable: bool
    ) -> tuple[Call | None, _Kind | None]:
        """The call of a kind, if one is remembered; if not, its kind for :meth:`keep`. As :func:`kind_of` otherwise."""
        alike = options, tuple(map(type, inputs)), differentiable
        given = [tensor for tensor in inputs if tensor is not None]
        try:
            last = self._last.get(alike)
        except TypeError:  # an option has no hash
            return None, None
        if last is not None and last.guards is not None and last.guards.check(*given):
            at = [*map(_address, given)]
            if not reduce(or_, at) & 15:
                addresses += at
                return last, None
        kind = kind_of(inputs, options, addresses, differentiable=differentiable)
        call = None if kind is None else self._calls.get(kind)
        if call is None:
            return None, kind
        if call is last or call.guards is None:
            call.guards = _guards_of(given)
        self._last[alike] = call
        return call, None

    def keep(self, kind: _Kind, call: Call) -> None:
        """Remember a call of a kind."""
        if len(self._calls) >= ROOM:
            self.clear()
        self._calls[kind] = call

    def clear(self) -> None:
        """Have every call run as if it were the first."""
        self._calls.clear()
        self._last.clear()

    def __iter__(self) -> Iterator[Call]:
        return iter([*self._calls.values()])


class Repeated:
    """The calls of one launcher, whose kernels see nothing but its inputs and what it makes itself by torch.empty."""

    def __init__(self) -> None:
        self._calls = Remembered()

    def __call__(self, run: Callable[[], tuple[Tensor, ...]], inputs: _Inputs, options: _Kind) -> tuple[Tensor, ...]:
        """What `run` returns, contiguous tensors that it makes, on the current device.

        Args:
            run: makes its outputs from `inputs` and `options`, and reads nothing else that may change.
            inputs: every tensor it is given.
            options: everything else.
        """
        if launching.is_heard():
            return run()
        addresses: list[int] = []
        call, kind = self._calls.find(inputs, options, addresses, differentiable=False)
        if call is not None:
            _tell(call)
            return call(addresses)
        if kind is None:
            return run()
        with launching.noted() as notes:
            outputs = run()
        call = Call.of(notes, addresses, outputs)
        if call is not None:
            self._calls.keep(kind, call)
            _tell(call)
        return outputs


@contextmanager
def heard() -> Iterator[list[Call]]:
    """The calls that this thread repeats or remembers: the one that stands for an operator, if it is but one."""
    before = getattr(_here, "calls", None)
    calls: list[Call] = []
    _here.calls = calls
    try:
        yield calls
    finally:
        _here.calls = before


def forget() -> None:
    """Have every call run as if it were the first: a choice that calls do not carry has changed."""
    for calls in _everywhere:
        calls.clear()


def _guards_of(given: Sequence[Tensor]) -> Any:
    """What checks whether tensors are like these, but for their addresses and values; None where torch has no such."""
    if _Guards is None:
        return None
    sizes, strides = [list(tensor.shape) for tensor in given], [list(tensor.stride()) for tensor in given]
    return _Guards(*given, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)


def _tell(call: Call) -> None:
    calls = getattr(_here, "calls", None)
    if calls is not None:
        calls.append(call)


_plain: set[_Kind] = set()  # types of inputs that are plain
_here = threading.local()  # the calls that this thread hears of
_everywhere: list[Remembered] = []
_Guards = getattr(torch._C._dynamo.guards, "TensorGuards", None)
