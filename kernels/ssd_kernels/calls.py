"""A call remembered: the launches it made, and where in them the addresses of its tensors belong."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from ssd_kernels.launching import Note, Tiles
from ssd_kernels.triton_launcher import prepared

_ALIGNMENT = 512  # bytes, of what torch allocates on a GPU

_Empty = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]


class Call:
    """Launches, with the places where an address belongs: inputs come first, then outputs, then what else was made.

    The last are parts of one allocation. No tensor is kept, nor an address.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.index, self.empty = device, device.index, empty_on(device)
        self.outputs: list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]] = []
        self.offsets: list[int] = []
        self.size = 0  # bytes of the allocation
        self.launches: list[_Launch] = []
        self.guards: Any = None  # of the tensors that it was last given, for who looks it up

    @classmethod
    def of(cls, notes: list[Note | None], inputs: list[int], outputs: tuple[Tensor, ...]) -> "Call | None":
        """What these launches were; None if one is not known, or addresses do not tell which tensor it takes."""
        call = cls(outputs[0].device)
        given = [*inputs, *(output.data_ptr() for output in outputs)]
        places = {address: place for place, address in enumerate(given)}
        if 0 in places or len(places) < len(given) or not all(output.is_contiguous() for output in outputs):
            return None
        call.outputs += [(tuple(output.shape), output.stride(), output.dtype) for output in outputs]

        def place(tensor: Tensor) -> int:
            address = tensor.data_ptr()
            if address not in places:
                if not address or tensor.storage_offset() or not tensor.is_contiguous():
                    raise LookupError
                places[address] = len(inputs) + len(outputs) + len(call.offsets)
                call._add(tensor.nbytes)
            return places[address]

        try:
            for note in notes:
                if note is None:
                    return None
                call.launches.append(_Launch(note, place))
        except LookupError:
            return None
        return call if notes else None

    def without_last_output(self) -> "Call":
        """The same for who does not want its last output: that is made with what else the launches need."""
        call = Call(self.device)
        *call.outputs, (shape, _, dtype) = self.outputs
        call._add(torch.Size(shape).numel() * dtype.itemsize)
        call.offsets += [call.size + offset for offset in self.offsets]
        call.size += self.size
        call.launches = self.launches
        return call

    def on_its_device(self, addresses: list[int]) -> tuple[Tensor, ...]:
        """Launch it all on the device that it was launched on, whatever the current one is."""
        if self.index is None or self.index == driver.active.get_current_device():
            return self(addresses)
        with torch.cuda.device(self.device):
            return self(addresses)

    def __call__(self, addresses: list[int]) -> tuple[Tensor, ...]:
        """Launch it all on the current device, which is its own, and stream; inputs' `addresses` are added to."""
        empty = self.empty
        made = [empty(*output) for output in self.outputs]
        addresses += [output.data_ptr() for output in made]
        if self.size:
            others = empty((self.size,), (1,), torch.uint8)
            start = others.data_ptr()
            addresses += [start + offset for offset in self.offsets]
        stream = driver.active.get_current_stream(self.index or 0)
        for launch in self.launches:
            launch(addresses, stream)
        return tuple(made)

    def _add(self, nbytes: int) -> None:
        """A further part of the allocation."""
        self.offsets.append(self.size)
        self.size += -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def empty_on(device: torch.device) -> _Empty:
    """What makes a tensor of a shape, strides and dtype on a device that is the current one, without values.

    Torch's own, by which graphs that torch.compile made allocate, takes half as long as torch.empty_strided; it is no
    part of torch's interface, so where it is missing, that does.
    """
    found: _Empty | None = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if found is not None:
        return found
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=device)


class _Launch:
    """One launch: what a compiled kernel takes, and where in it addresses belong."""

    def __init__(self, note: Note, place: Callable[[Tensor], int]) -> None:
        compiled, ordered, grid, args = note
        self.pointers: list[tuple[int, int]] = []
        self.tuples: list[tuple[int, tuple[int | None, ...]]] = []
        self.tiles: list[tuple[int, int, Callable[[int], Any]]] = []
        passed: list[Any] = [*args, *ordered]
        tiles: dict[int, Tiles] = {}
        for i, arg in enumerate(args):
            if isinstance(arg, Tiles):
                passed[i] = tiles[i] = arg.elsewhere(0)
            elif isinstance(arg, Tensor) or (isinstance(arg, tuple) and any(isinstance(each, Tensor) for each in arg)):
                passed[i] = None  # no tensor is kept
        self.run, self.passed, at, described = prepared(compiled, grid, passed, tiles)
        for i, arg in enumerate(args):
            if isinstance(arg, Tensor) and arg.numel() == 0:
                self.passed[at[i]] = 0
            elif isinstance(arg, Tensor):
                self.pointers.append((at[i], place(arg)))
            elif isinstance(arg, Tiles):
                self.tiles.append((at[i], place(arg.base), described[i]))
            elif isinstance(arg, tuple) and any(isinstance(each, Tensor) for each in arg):
                self.tuples.append((at[i], tuple([None if each is None else place(each) for each in arg])))

    def __call__(self, addresses: list[int], stream: int) -> None:
        passed = self.passed.copy()
        for i, place in self.pointers:
            passed[i] = addresses[place]
        for i, place, described in self.tiles:
            passed[i] = described(addresses[place])
        for i, places in self.tuples:
            passed[i] = tuple([None if place is None else addresses[place] for place in places])
        self.run(stream, passed)
