"""A call that launches several kernels, repeated: all that its arguments decide but addresses is noted once.

A launch through :mod:`ssd_kernels.launching` still works out strides, constants and descriptors, and asks for the kind
of every argument. A call whose tensors have the shapes, strides, dtypes and alignments of one before, on the same
device and with the same options, launches the same compiled kernels on the same grids with the same numbers.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from ssd_kernels import launching
from ssd_kernels.launching import Note, Tiles

# Calls remembered; where more come by, they are collected anew.
ROOM = 4096
_everyone: "weakref.WeakSet[Repeated]" = weakref.WeakSet()
_ALIGNMENT = 512  # bytes, of what torch allocates on a GPU

_Inputs = Sequence[Tensor | None]


class Repeated:
    """The calls of one launcher, whose kernels see nothing but its inputs and what it makes itself by torch.empty."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, _Call] = {}
        _everyone.add(self)

    def __call__(
        self, run: Callable[[], tuple[Tensor, ...]], inputs: _Inputs, options: Hashable, device: torch.device
    ) -> tuple[Tensor, ...]:
        """What `run` returns, contiguous tensors that it makes, on the current device.

        Args:
            run: makes its outputs from `inputs` and `options`, and reads nothing else that may change.
            inputs: every tensor it is given.
            options: everything else.
            device: of all tensors.
        """
        if launching.is_heard():
            return run()
        addresses = []
        key: list[Any] = [options, device]
        for tensor in inputs:
            if tensor is None:
                addresses.append(0)
                key.append(None)
            else:
                address = tensor.data_ptr()
                addresses.append(address)
                key.append((tensor.shape, tensor.stride(), tensor.dtype, address & 15))
        kind = tuple(key)
        call = self._calls.get(kind)
        if call is not None:
            return call(addresses, device)
        with launching.noted() as notes:
            outputs = run()
        call = _Call.of(notes, addresses, outputs)
        if call is not None:
            if len(self._calls) >= ROOM:
                self._calls.clear()
            self._calls[kind] = call
        return outputs

    def forget(self) -> None:
        """Have the next call of every kind run as if it were the first."""
        self._calls.clear()


def forget() -> None:
    """Have every call run as if it were the first: a choice that calls do not carry has changed."""
    for each in _everyone:
        each.forget()


class _Call:
    """Launches, with the places where an address belongs: inputs come first, then outputs, then what else was made.

    The last are parts of one allocation.
    """

    def __init__(self) -> None:
        self.outputs: list[tuple[torch.Size, torch.dtype]] = []
        self.offsets: list[int] = []
        self.size = 0  # bytes of the allocation
        self.launches: list[_Launch] = []

    @classmethod
    def of(cls, notes: list[Note | None], inputs: list[int], outputs: tuple[Tensor, ...]) -> "_Call | None":
        """What these launches were; None if one is not known, or addresses do not tell which tensor it takes."""
        call = cls()
        given = [address for address in inputs if address]
        places = {address: place for place, address in enumerate(inputs) if address}
        for output in outputs:
            given.append(output.data_ptr())
            places[output.data_ptr()] = len(inputs) + len(call.outputs)
            call.outputs.append((output.shape, output.dtype))
        if 0 in given or len(places) < len(given) or not all(output.is_contiguous() for output in outputs):
            return None

        def place(tensor: Tensor) -> int:
            address = tensor.data_ptr()
            if address not in places:
                if not address or tensor.storage_offset() or not tensor.is_contiguous():
                    raise LookupError
                places[address] = len(inputs) + len(outputs) + len(call.offsets)
                call.offsets.append(call.size)
                call.size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            return places[address]

        try:
            for note in notes:
                if note is None:
                    return None
                call.launches.append(_Launch(note, place))
        except LookupError:
            return None
        return call if notes else None

    def __call__(self, addresses: list[int], device: torch.device) -> tuple[Tensor, ...]:
        outputs = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self.outputs]
        addresses += [output.data_ptr() for output in outputs]
        others = torch.empty(self.size, dtype=torch.uint8, device=device)
        start = others.data_ptr()
        addresses += [start + offset for offset in self.offsets]
        stream = driver.active.get_current_stream(device.index or 0)
        for launch in self.launches:
            launch(addresses, stream)
        return tuple(outputs)


class _Launch:
    """One launch: what a compiled kernel takes, and where in it addresses belong."""

    def __init__(self, note: Note, place: Callable[[Tensor], int]) -> None:
        self.compiled, ordered, grid, args = note
        self.grid = (*grid, 1, 1)[:3]
        self.passed: list[Any] = [*args, *ordered]
        self.pointers: list[tuple[int, int]] = []
        self.tiles: list[tuple[int, int, Tiles]] = []
        self.tuples: list[tuple[int, tuple[int | None, ...]]] = []
        for i, arg in enumerate(args):
            if isinstance(arg, Tensor):
                self.pointers.append((i, place(arg)))
            elif isinstance(arg, Tiles):
                self.tiles.append((i, place(arg.base), arg.elsewhere(0)))
            elif isinstance(arg, tuple) and any(isinstance(each, Tensor) for each in arg):
                self.tuples.append((i, tuple(None if each is None else place(each) for each in arg)))
            else:
                continue
            self.passed[i] = None  # no tensor is kept

    def __call__(self, addresses: list[int], stream: int) -> None:
        passed = self.passed.copy()
        for i, place in self.pointers:
            passed[i] = addresses[place]
        for i, place, tiles in self.tiles:
            passed[i] = tiles.elsewhere(addresses[place])
        for i, places in self.tuples:
            passed[i] = tuple([None if place is None else addresses[place] for place in places])
        compiled = self.compiled
        compiled.run(*self.grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *passed)
