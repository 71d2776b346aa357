"""The function in C takes from us what it takes from Triton's launcher in Python; nothing is compiled."""

from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel

from ssd_kernels import triton_launcher
from ssd_kernels.launching import Tiles
from ssd_kernels.triton_launcher import prepared

pytestmark = pytest.mark.correctness

META = {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [64, 64], "fp4_padded": False}
SIGNATURE = {
    "tiles": "tensordesc<bf16[64, 64]>", "x": "*bf16", "more": "tensordesc<bf16[64, 64]>", "tuple": ("*fp32", "i32"),
    "FLAG": "constexpr",
}  # fmt: skip


class Compiled(CompiledKernel):
    """A compiled kernel with a launcher of Triton's, whose function in C only notes what it gets."""

    function, packed_metadata, _init_handles = 77, (4, 1, 0), None

    def __init__(self, signature=SIGNATURE, encoded=(META, META), **changes):
        self.sent = []
        self.metadata = SimpleNamespace(tensordesc_meta=list(encoded))
        self._run = nvidia.CudaLauncher.__new__(nvidia.CudaLauncher)
        fields = {
            "num_ctas": 1, "global_scratch_size": 0, "global_scratch_align": 1, "profile_scratch_size": 0,
            "profile_scratch_align": 1, "launch_cooperative_grid": False, "launch_pdl": True,
            "arg_annotations": ["annotations"], "kernel_signature": b"signature",
            "launch": nvidia.wrap_handle_tensordesc(lambda *args: self.sent.append(args), signature, list(encoded)),
        }  # fmt: skip
        for name, value in (fields | changes).items():
            setattr(self._run, name, value)


@pytest.fixture(autouse=True)
def encoded(monkeypatch):
    """What was encoded for TMA."""
    calls = []

    def fill(address, *args):
        calls.append(address)
        return ("map", address, *(tuple(arg) if isinstance(arg, list | tuple) else arg for arg in args))

    utils = SimpleNamespace(fill_tma_descriptor=fill, fill_tma_descriptor_tiled=fill)
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(utils=utils))
    return calls


def tile(width=64):
    """A tensor of that width, as TMA sees it."""
    return Tiles(torch.empty(128, width, dtype=torch.bfloat16), (128, width), (width, 1), (64, 64), None)


def both_ways(compiled, tiles, passed):
    """What reaches the function in C through Triton's launcher, and through ours, twice."""
    compiled.run(2, 3, 1, 5, 77, (4, 1, 0), None, None, None, *passed)
    empty = [tiles[i].elsewhere(0) if i in tiles else value for i, value in enumerate(passed)]
    run, arguments, at, described = prepared(compiled, (2, 3), empty, tiles)
    for _ in range(2):
        ours = arguments.copy()
        for i, each in tiles.items():
            ours[at[i]] = described[i](each.base.data_ptr())
        run(5, ours)
    return [plain(args) for args in compiled.sent]


def plain(args):
    """Lists as tuples; the last argument of Triton 3.7's function may be either."""
    return tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)


@pytest.mark.parametrize("encoding", ["TMA", "none"])
def test_the_function_in_c_gets_what_it_gets_from_tritons_launcher(encoding):
    if encoding == "TMA":
        first, second = tile(), tile(256)
        compiled, tiles = Compiled(), {0: first, 2: second}
        passed = [first, 1024, second, (2048, 7), True]
    else:
        compiled = Compiled({"x": "*bf16", "n": "i32", "FLAG": "constexpr"}, encoded=())
        tiles, passed = {}, [1024, 3, True]
    tritons, ours, again = both_ways(compiled, tiles, passed)
    assert tritons[:3] == (2, 3, 1)
    assert ours == tritons
    assert again == tritons


def test_a_tensor_at_an_address_is_encoded_once_and_one_elsewhere_anew(encoded, monkeypatch):
    monkeypatch.setattr(triton_launcher, "ROOM", 2)
    each = tile()
    compiled = Compiled({"tiles": SIGNATURE["tiles"]}, encoded=(META,))
    _, _, _, described = prepared(compiled, (1,), [each.elsewhere(0)], {0: each})
    maps = [described[0](address) for address in (512, 1024, 512, 1024)]
    assert (maps[:2], encoded) == (maps[2:], [512, 1024])
    assert maps[0] != maps[1]
    described[0](2048)
    described[0](512)  # there was no more room
    assert encoded == [512, 1024, 2048, 512]


@pytest.mark.parametrize(
    "compiled",
    [
        Compiled(global_scratch_size=8), Compiled(profile_scratch_size=8), Compiled(encoded=(META, None)),
        Compiled(encoded=(META, META | {"fp4_padded": True})),
    ],
    ids=["scratch", "scratch of a profiler", "no TMA", "fp4"],
)  # fmt: skip
def test_what_needs_more_goes_through_tritons_launcher(compiled):
    first, second = tile(), tile()
    empty = [first.elsewhere(0), 1024, second.elsewhere(0), (2048, 7), True]
    run, arguments, at, described = prepared(compiled, (2,), empty, {0: first, 2: second})
    assert (arguments, at) == (empty, [0, 1, 2, 3, 4])
    assert described[0](64).base.data_ptr() == 64
    seen = []
    compiled._run = lambda *args: seen.append(args)
    run, *_ = prepared(compiled, (2,), empty, {0: first, 2: second})
    run(5, empty)
    assert seen == [(2, 1, 1, 5, 77, (4, 1, 0), None, None, None, *empty)]


def test_so_does_all_of_another_version_of_triton(monkeypatch):
    monkeypatch.setattr(triton_launcher, "_VERSION", (3, 99))
    empty = [tile().elsewhere(0), 1024, tile().elsewhere(0), (2048, 7), True]
    _, arguments, _, _ = prepared(Compiled(), (2,), empty, {0: tile(), 2: tile()})
    assert arguments == empty
