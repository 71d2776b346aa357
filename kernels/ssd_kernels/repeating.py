"""A call that launches several kernels, repeated: all that its arguments decide but addresses is noted once.

A launch through :mod:`ssd_kernels.launching` still works out strides, constants and descriptors, and asks for the kind
of every argument. A call whose tensors have the shapes, strides, dtypes and alignments of one before, on the same
device and with the same options, launches the same compiled kernels on the same grids with the same numbers.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
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


def kind_of(inputs: _Inputs, options: _Kind, addresses: list[int], *, differentiable: bool) -> _Kind | None:
    """What decides a call but for addresses, which are appended, 0 for None; None of what is no plain memory.

    That is a subclass of torch's tensors, a tensor elsewhere than the first, one without memory, one whose values are
    those of its memory negated; and, where `differentiable`, one that requires a gradient. Strides are told apart where
    they matter: a contiguous tensor has those of its shape, but for dimensions of one element.
    """
    device = None
    kind: list[Any] = [options]
    try:
        for tensor in inputs:
            if tensor is None:
                kind.append(None)
                addresses.append(0)
                continue
            of, here, address = type(tensor), tensor.get_device(), tensor.data_ptr()
            if here != device:
                if device is not None:
                    return None
                device = here
                kind.append(here)
            if (of is not Tensor and of is not Parameter) or tensor.is_neg() or not address:
                return None
            if differentiable and tensor.requires_grad:
                return None
            addresses.append(address)
            kind += tensor.shape, tensor.dtype, address & 15, tensor.is_contiguous() or tensor.stride()
    except (AttributeError, RuntimeError, NotImplementedError):  # no tensor, or one without strides or memory
        return None
    return tuple(kind)


class Repeated:
    """The calls of one launcher, whose kernels see nothing but its inputs and what it makes itself by torch.empty."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call] = {}

    def __call__(
        self, run: Callable[[], tuple[Tensor, ...]], inputs: _Inputs, options: _Kind, device: torch.device
    ) -> tuple[Tensor, ...]:
        """What `run` returns, contiguous tensors that it makes, on the current device.

        Args:
            run: makes its outputs from `inputs` and `options`, and reads nothing else that may change.
            inputs: every tensor it is given; the first is no None.
            options: everything else.
            device: of all tensors.
        """
        if launching.is_heard():
            return run()
        addresses: list[int] = []
        kind = kind_of(inputs, options, addresses, differentiable=False)
        if kind is None:
            return run()
        call = find(self._calls, kind)
        if call is not None:
            _tell(call)
            return call(addresses, device)
        with launching.noted() as notes:
            outputs = run()
        call = Call.of(notes, addresses, outputs)
        if call is not None:
            keep(self._calls, kind, call)
            _tell(call)
        return outputs

    def forget(self) -> None:
        """Have the next call of every kind run as if it were the first."""
        self._calls.clear()
        for calls in _told:
            calls.clear()


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


def shared() -> dict[Hashable, Call]:
    """Calls remembered elsewhere by what :func:`heard` tells, which are forgotten with the launchers'."""
    calls: dict[Hashable, Call] = {}
    _told.append(calls)
    return calls


def find(calls: dict[Hashable, Call], kind: _Kind | None) -> Call | None:
    """The call of a kind, if one is remembered."""
    try:
        return None if kind is None else calls.get(kind)
    except TypeError:  # an option has no hash
        return None


def keep(calls: dict[Hashable, Call], kind: _Kind, call: Call) -> None:
    """Remember a call, if its kind can be found again."""
    if len(calls) >= ROOM:
        calls.clear()
    with suppress(TypeError):
        calls[kind] = call


def _tell(call: Call) -> None:
    calls = getattr(_here, "calls", None)
    if calls is not None:
        calls.append(call)


_here = threading.local()  # the calls that this thread hears of
_told: list[dict[Hashable, Call]] = []
