"""What a repeated call launches, with which addresses, and what makes it another call; nothing is compiled."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from ssd_kernels import calls, launching, repeating
from ssd_kernels.launching import Tiles, launch
from ssd_kernels.repeating import Repeated
from tests.correctness.compiled import Compiled

pytestmark = pytest.mark.correctness


def _kernel(tiles, pointers, x_ptr, none_ptr, strides, length, FLAG: tl.constexpr):
    """Never compiled."""


@pytest.fixture
def world(monkeypatch):
    """A kernel, a call that launches it on what it is given and what it makes, and what reached the device."""
    launching.forget()
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 5)
    for module in (launching, calls):
        monkeypatch.setattr(module, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(Tiles, "described", lambda tiles: "a descriptor")
    kernel, launches, runs = JITFunction(_kernel), [], []
    kernel.run = lambda *args, grid, warmup, **constants: Compiled(launches)
    repeated = Repeated()

    def call(x, bias, flag=True):
        def run():
            runs.append(flag)
            out, other, more = torch.empty(x.shape), torch.empty(300), torch.empty(7, dtype=torch.float16)
            tiles = Tiles(x, tuple(x.shape), x.stride(), (8,), None)
            launch(kernel, (3,), tiles, (out, bias, other), other, None, (x.stride(), 1), len(x), FLAG=flag)
            launch(kernel, (4, 2), tiles, (out, None, more), more, None, (x.stride(), 1), len(x), FLAG=flag)
            return (out,)

        return repeated(run, (x, bias), (flag,))[0]

    yield SimpleNamespace(call=call, launches=launches, runs=runs, kernel=kernel, repeated=repeated)
    launching.forget()


def test_a_repeated_call_launches_the_same_with_its_own_addresses(world):
    first = torch.zeros(64), torch.zeros(4)
    second = torch.zeros(64), torch.zeros(4)
    world.call(*first)
    assert (len(world.runs), world.launches) == (1, [])
    y = world.call(*second)
    assert (y.shape, y.dtype, len(world.runs)) == (first[0].shape, torch.float32, 1)
    one, two = world.launches
    assert one[:9] == (3, 1, 1, 5, 77, (4, 1, 0), None, None, None)
    assert two[:3] == (4, 2, 1)
    for launched, bias in ((one, second[1].data_ptr()), (two, None)):
        tiles, (out, given, other), x_ptr, *rest = launched[9:]
        assert (tiles.base.data_ptr(), tiles.shape, tiles.strides) == (second[0].data_ptr(), (64,), (1,))
        assert (tiles.padding, tiles.round_f32_to_tf32) == ("zero", False)
        assert (out, given) == (y.data_ptr(), bias)
        assert x_ptr == other
        assert rest == [None, ((1,), 1), 64, True]
    assert two[10][2] - one[10][2] == 1536  # both are parts of one allocation, each at a multiple of 512 bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"x": torch.zeros(65)}, {"x": torch.zeros(128)[::2]}, {"x": torch.zeros(64, dtype=torch.float64)},
        {"x": torch.zeros(65)[1:]}, {"bias": None}, {"bias": torch.zeros(5)}, {"flag": False},
    ],
    ids=["length", "stride", "dtype", "alignment", "none", "another's length", "option"],
)  # fmt: skip
def test_what_differs_in_more_than_addresses_is_another_call(world, changes):
    arguments = {"x": torch.zeros(64), "bias": torch.zeros(4)}
    for _ in range(3):
        world.call(**arguments)
    world.call(**arguments | changes)
    assert len(world.runs) == 2
    world.call(**arguments)
    assert len(world.runs) == 2


def test_a_call_like_the_last_is_found_without_asking_for_its_kind(world, monkeypatch):
    asked, kind_of = [], repeating.kind_of
    monkeypatch.setattr(repeating, "kind_of", lambda *args, **options: asked.append(1) or kind_of(*args, **options))
    for _ in range(5):
        world.call(torch.zeros(64), torch.zeros(4))
    assert (len(world.runs), len(asked)) == (1, 2)
    with torch.inference_mode():  # where tensors are of another kind to torch, and of the same to a kernel
        for _ in range(3):
            world.call(torch.zeros(64), torch.zeros(4))
    assert (len(world.runs), len(asked)) == (1, 3)
    for length in (65, 64) * 3:
        world.call(torch.zeros(length), torch.zeros(4))
    assert (len(world.runs), len(asked)) == (2, 9)


def test_calls_are_repeated_where_torch_has_no_guards(world, monkeypatch):
    monkeypatch.setattr(repeating, "_Guards", None)
    for _ in range(3):
        world.call(torch.zeros(64), torch.zeros(4))
    assert len(world.runs) == 1


def test_a_tensor_given_twice_does_not_tell_where_each_belongs(world):
    x = torch.zeros(64)
    world.call(x, x)
    world.call(torch.zeros(64), torch.zeros(64))
    assert len(world.runs) == 2


def test_a_launch_that_is_not_known_leaves_the_call_as_it_is(world):
    world.kernel.pre_run_hooks.append(lambda *args, **constants: None)
    for _ in range(2):
        world.call(torch.zeros(64), torch.zeros(4))
    assert len(world.runs) == 2


def test_who_listens_hears_every_launch(world, monkeypatch):
    arguments = torch.zeros(64), torch.zeros(4)
    world.call(*arguments)
    monkeypatch.setattr(Compiled, "launch_metadata", lambda *args: "metadata", raising=False)
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda metadata: None)
    world.call(*arguments)
    assert len(world.runs) == 2
    assert world.launches[0][6] == "metadata"


def test_calls_can_be_forgotten_and_do_not_pile_up(world, monkeypatch):
    monkeypatch.setattr(repeating, "ROOM", 2)
    for length in (64, 65, 66, 66):
        world.call(torch.zeros(length), torch.zeros(4))
    assert len(world.runs) == 3
    world.call(torch.zeros(64), torch.zeros(4))
    assert len(world.runs) == 4
    repeating.forget()
    world.call(torch.zeros(64), torch.zeros(4))
    assert len(world.runs) == 5


def test_tensors_on_different_devices_are_no_call_to_remember(monkeypatch):
    tensors = torch.zeros(4), torch.zeros(4)
    assert repeating.kind_of(tensors, (), [], differentiable=False) is not None
    monkeypatch.setattr(repeating, "_device", lambda tensor: int(tensor is tensors[1]))
    assert repeating.kind_of(tensors, (), [], differentiable=False) is None


@pytest.mark.parametrize("current", [0, 1])
def test_a_call_is_launched_on_its_own_device(monkeypatch, current):
    entered, call = [], calls.Call(torch.device("cuda", 1))
    active = SimpleNamespace(get_current_device=lambda: current, get_current_stream=lambda device: 5)
    monkeypatch.setattr(calls, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    call.launches.append(lambda addresses, stream: entered.append(stream))
    call.on_its_device([])
    assert entered == [*([torch.device("cuda", 1)] if current == 0 else []), 5]
