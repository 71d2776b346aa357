"""The function in C that launches a kernel, below Triton's launcher in Python, and what it takes.

Triton's launcher asks at every launch whether the kernel needs scratch memory, and encodes anew every tensor that TMA
loads or stores, in about 1.5 µs each. A launch that is made again needs neither: memory's addresses recur, and what is
encoded follows from the address alone. All that this module knows of Triton's inside is looked at before it is relied
on; where anything is not as it is in Triton 3.6 and 3.7, a launch goes through Triton's launcher as it is.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import triton
from triton.compiler import CompiledKernel

from ssd_kernels.launching import Tiles

# Addresses of one tile remembered; where more come by, they are collected anew.
ROOM = 256

Run = Callable[[int, list[Any]], None]
Described = Callable[[int], Any]
_NOT_HEARD = (None, None, None)  # metadata of the launch, hooks before and after


def prepared(
    compiled: CompiledKernel, grid: tuple[int, ...], passed: list[Any], tiles: dict[int, Tiles]
) -> tuple[Run, list[Any], list[int], dict[int, Described]]:
    """How to launch a compiled kernel again and again, while nobody listens to Triton's launches.

    Args:
        compiled: loaded already.
        grid: programs along up to three axes.
        passed: what it takes, constants too.
        tiles: those of `passed` that TMA sees, by their place in it.

    Returns:
        What launches on a stream, with arguments; those arguments; where in them each of `passed` stands; and of each
        of `tiles`, what stands there for a tensor at an address.
    """
    x, y, z = (*grid, 1, 1)[:3]
    found = _in_c(compiled, tiles)
    if found is None:
        launch, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

        def run(stream: int, arguments: list[Any]) -> None:
            launch(x, y, z, stream, function, metadata, *_NOT_HEARD, *arguments)

        return run, passed, list(range(len(passed))), {i: tile.elsewhere for i, tile in tiles.items()}
    bind, encoders = found
    arguments: list[Any] = []
    at = []
    for i, value in enumerate(passed):
        at.append(len(arguments))
        arguments += [None, *tiles[i].shape, *tiles[i].strides] if i in tiles else [value]
    described = dict(zip(tiles, encoders, strict=True))
    return bind(x, y, z), arguments, at, described


def _in_c(
    compiled: CompiledKernel, tiles: dict[int, Tiles]
) -> tuple[Callable[[int, int, int], Run], list[Described]] | None:
    """What makes of a grid what launches on it by the function in C, and what encodes each tile; None if not known."""
    launcher = compiled.run
    of = type(launcher)
    if _VERSION not in _KNOWN or (of.__module__, of.__qualname__) != ("triton.backends.nvidia.driver", "CudaLauncher"):
        return None
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return None
    from triton.backends.nvidia.driver import make_tensordesc_arg

    encoded = list(getattr(compiled.metadata, "tensordesc_meta", None) or ())
    if len(encoded) != len(tiles) or any(meta is None or meta["fp4_padded"] for meta in encoded):
        return None
    launch = launcher.launch
    if tiles:
        # A function in Python that encodes the tiles and calls the one in C.
        launch = inspect.getclosurevars(launch).nonlocals["launcher"]

    def encoder(tile: Tiles, meta: Any) -> Described:
        known: dict[int, Any] = {}

        def described(address: int) -> Any:
            found = known.get(address)
            if found is None:
                if len(known) >= ROOM:
                    known.clear()
                found = known[address] = make_tensordesc_arg(tile.elsewhere(address), meta)[0]
            return found

        return described

    encoders = [encoder(tile, meta) for tile, meta in zip(tiles.values(), encoded, strict=True)]
    return functools.partial(_KNOWN[_VERSION], launch, launcher, compiled), encoders


def _of_3_6(launch: Any, launcher: Any, compiled: CompiledKernel, x: int, y: int, z: int) -> Run:
    function, cooperative, early = compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl
    metadata = compiled.packed_metadata

    def run(stream: int, arguments: list[Any]) -> None:
        launch(x, y, z, stream, function, cooperative, early, None, None, metadata, *_NOT_HEARD, *arguments)

    return run


def _of_3_7(launch: Any, launcher: Any, compiled: CompiledKernel, x: int, y: int, z: int) -> Run:
    function, cooperative, early = compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl
    metadata, annotations, signature = compiled.packed_metadata, launcher.arg_annotations, launcher.kernel_signature

    def run(stream: int, arguments: list[Any]) -> None:
        launch(
            x, y, z, stream, function, cooperative, early, metadata, *_NOT_HEARD, None, None, annotations, signature,
            arguments,
        )  # fmt: skip

    return run


_KNOWN = {(3, 6): _of_3_6, (3, 7): _of_3_7}
_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
