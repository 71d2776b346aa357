"""What the launch helper tells apart, what it hands to a compiled kernel, and who hears of it; nothing is compiled."""

from types import SimpleNamespace

import pytest
import torch
import triton.language as tl
from hypothesis import given, strategies as st
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernelgate.artifacts import triton_artifacts
from ssd_kernels import launching
from ssd_kernels.launching import launch

pytestmark = pytest.mark.correctness


def _kernel(x_ptr, out_ptr, strides, eps, size, length, FLAG: tl.constexpr, BLOCK: tl.constexpr = 8):
    """Never compiled."""


class Compiled(CompiledKernel):
    """What Triton would have compiled, with a launcher that notes what it gets."""

    name, function, packed_metadata = "_kernel", 77, (4, 1, 0)
    kernel, metadata, src, n_regs = b"binary", SimpleNamespace(num_warps=4), None, 32

    def __init__(self):
        self.launches = []

    def _init_handles(self):
        pass

    @property
    def run(self):
        return lambda *args: self.launches.append(args)


@pytest.fixture
def kernel():
    """A kernel, with `through_triton` the calls of it that Triton has seen."""
    launching.forget()
    made = JITFunction(_kernel, do_not_specialize=["length"])
    made.through_triton = []

    def run(*args, grid, warmup, **constants):
        made.through_triton.append((grid, args, constants))
        return Compiled()

    made.run = run
    yield made
    launching.forget()


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The number of the current device, to be changed."""
    current = SimpleNamespace(number=0, stream=5)
    active = SimpleNamespace(
        get_current_device=lambda: current.number, get_current_stream=lambda device: current.stream + device
    )
    monkeypatch.setattr(launching, "driver", SimpleNamespace(active=active))
    return current


def arguments(**changes):
    """The arguments of a launch, some of them changed."""
    given = {
        "x": torch.zeros(32), "out": torch.zeros(8, dtype=torch.float16), "strides": ((64, 1), (7,)), "eps": 0.5,
        "size": 32, "length": 9,
    }  # fmt: skip
    return (given | changes).values()


def compiled_of(kernel):
    """The compiled kernels remembered."""
    return [compiled for compiled, _ in launching._known[id(kernel)].compiled.values()]


def test_the_first_launch_goes_through_triton_and_others_straight_to_the_compiled_kernel(kernel):
    first, second = list(arguments()), list(arguments(eps=0.25, length=10))
    launch(kernel, (3,), *first, FLAG=True, num_warps=4)
    launch(kernel, (4, 2), *second, FLAG=True, num_warps=4)
    assert kernel.through_triton == [((3,), tuple(first), {"FLAG": True, "num_warps": 4})]
    (compiled,) = compiled_of(kernel)
    x, out, *others = second
    nobody_listens = (None, None, None)
    assert compiled.launches == [
        (4, 2, 1, 5, 77, (4, 1, 0), *nobody_listens, x.data_ptr(), out.data_ptr(), *others, True, 8)
    ]


def test_no_address_is_kept(kernel):
    for x in (torch.zeros(32), torch.ones(32), torch.zeros(16)):
        launch(kernel, (1,), *arguments(x=x), FLAG=True)
        last = x
    assert len(kernel.through_triton) == 1
    assert compiled_of(kernel)[0].launches[-1][9] == last.data_ptr()


UNALIGNED = torch.zeros(33)[1:]
SAME = [{"length": 16}, {"length": 1}, {"eps": 7.0}, {"size": 48}, {"strides": ((80, 1), (9,))}, {"x": torch.ones(1)},
        {"x": torch.nn.Parameter(torch.zeros(4))}]  # fmt: skip
OTHER = [
    {"x": UNALIGNED}, {"x": None}, {"x": torch.zeros(32, dtype=torch.int32)}, {"size": 33}, {"size": 1},
    {"size": 2**31}, {"length": 2**40}, {"length": 2**63}, {"strides": ((64, 2), (7,))}, {"strides": ((64, 1), (16,))},
    {"strides": ((64, 1), (2**33 + 1,))}, {"eps": 1}, {"size": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_arguments_of_the_same_kind_take_the_same_compiled_kernel(kernel, changes):
    launch(kernel, (1,), *arguments(), FLAG=True)
    launch(kernel, (1,), *arguments(**changes), FLAG=True)
    assert len(kernel.through_triton) == 1


@pytest.mark.parametrize("changes", OTHER, ids=str)
def test_arguments_of_another_kind_are_shown_to_triton(kernel, changes):
    launch(kernel, (1,), *arguments(), FLAG=True)
    launch(kernel, (1,), *arguments(**changes), FLAG=True)
    assert len(kernel.through_triton) == 2


@pytest.mark.parametrize("constants", [{"FLAG": False}, {"FLAG": True, "BLOCK": 16}, {"FLAG": True, "num_warps": 8}])
def test_other_constants_and_options_are_shown_to_triton(kernel, constants):
    launch(kernel, (1,), *arguments(), FLAG=True)
    launch(kernel, (1,), *arguments(), **constants)
    assert len(kernel.through_triton) == 2


def test_every_device_has_compiled_kernels_of_its_own(kernel, device):
    for device.number in (0, 1, 0, 1):
        launch(kernel, (1,), *arguments(), FLAG=True)
    assert len(kernel.through_triton) == 2
    assert [compiled.launches[0][3] for compiled in compiled_of(kernel)] == [5, 6]  # each on its device's stream


@pytest.mark.parametrize(
    "value", [object(), (1, 0.5), (True,), ((1, None),)], ids=["object", "float", "bool", "nested"]
)
def test_what_is_not_known_goes_through_triton_every_time(kernel, value):
    for _ in range(2):
        launch(kernel, (1,), *arguments(strides=value), FLAG=True)
    assert len(kernel.through_triton) == 2


@pytest.mark.parametrize("value", [(True,), (1.0,)], ids=["bool", "float"])
def test_so_does_what_equals_integers_seen_before(kernel, value):
    launch(kernel, (1,), *arguments(strides=(1,)), FLAG=True)
    for _ in range(2):
        launch(kernel, (1,), *arguments(strides=value), FLAG=True)
    assert len(kernel.through_triton) == 3


def test_so_do_a_kernel_with_hooks_of_its_own_and_one_that_is_no_compiled_function(kernel):
    kernel.add_pre_run_hook(lambda *_, **__: None)
    for _ in range(2):
        launch(kernel, (1,), *arguments(), FLAG=True)
    assert len(kernel.through_triton) == 2
    interpreted = {}
    launch({(1,): lambda *args, **constants: interpreted.update(constants)}, (1,), *arguments(), FLAG=True)
    assert interpreted == {"FLAG": True}


def test_a_compilation_that_a_hook_took_over_is_not_remembered(kernel):
    kernel.run = lambda *_, **__: None
    launch(kernel, (1,), *arguments(), FLAG=True)
    assert compiled_of(kernel) == []


def test_a_missing_argument_is_for_triton_to_refuse(kernel):
    launch(kernel, (1,), *arguments(), FLAG=True)
    launch(kernel, (1,), *list(arguments())[:-1], FLAG=True)
    assert len(kernel.through_triton) == 2


def test_more_kinds_than_there_is_room_for_start_over(kernel, monkeypatch):
    monkeypatch.setattr(launching, "ROOM", 4)
    for block in range(6):
        launch(kernel, (1,), *arguments(strides=(block,)), FLAG=True, BLOCK=block)
    assert len(compiled_of(kernel)) == 2
    assert len(launching._kinds_of_tuples) <= 4


def test_tritons_launch_hooks_hear_of_every_launch(kernel, monkeypatch):
    launch(kernel, (1,), *arguments(), FLAG=True)
    launch(kernel, (1,), *arguments(), FLAG=True)
    hook = knobs.HookChain()
    hook.add(lambda metadata: None)
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", hook)
    launch(kernel, (2,), *arguments(), FLAG=True)
    quiet, heard = compiled_of(kernel)[0].launches
    assert quiet[6:9] == (None, None, None)
    assert (heard[6].data["name"], heard[7]) == ("_kernel", hook)


def test_the_gate_counts_every_launch(kernel):
    def call():
        launch(kernel, (1,), *arguments(), FLAG=True)

    call()
    metrics, kernels = triton_artifacts(lambda: [call() for _ in range(3)])
    assert metrics["triton_launches"].worst == 3
    assert [each["name"] for each in kernels] == ["_kernel"]


TENSORS = [torch.zeros(8), UNALIGNED, torch.zeros(8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.int64), None]
INTEGERS = [0, 1, 2, 15, 16, 17, -1, -16, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, 2**63, 2**63 + 8]
numbers = st.sampled_from([*INTEGERS, 0.0, 1.0, 16.0, float("inf")])
tuples = st.recursive(st.sampled_from(INTEGERS), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
fields = {"x": st.sampled_from(TENSORS), "out": st.sampled_from(TENSORS), "strides": tuples,
          "eps": numbers, "size": numbers, "length": numbers}  # fmt: skip
launches = st.fixed_dictionaries(fields)


@given(one=launches, other=launches, changed=st.sets(st.sampled_from([*fields]), max_size=2))
def test_two_launches_of_one_kind_are_one_to_triton(one, other, changed):
    assert_no_coarser_than_triton([one, one | {name: other[name] for name in changed}])


@pytest.mark.parametrize("name", ["size", "length", "strides", "x"])
def test_no_two_values_that_triton_tells_apart_are_of_one_kind(name):
    values = TENSORS if name == "x" else [(each, 3) for each in INTEGERS] if name == "strides" else [*INTEGERS, 0.5]
    given = dict(zip(fields, arguments(), strict=True))
    assert_no_coarser_than_triton([given | {name: value} for value in values])


def assert_no_coarser_than_triton(launches):
    kernel = JITFunction(_kernel, do_not_specialize=["length"])
    known, backend = launching._Known(kernel), make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    by_kind = {}
    for each in launches:
        kind = known.kind(0, tuple(each.values()), {"FLAG": 1}, [])
        assert kind is not None
        by_triton = bind(*each.values(), FLAG=1)[1]
        assert by_kind.setdefault(kind, by_triton) == by_triton, each
