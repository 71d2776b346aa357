"""A scan like one before is launched without checks and dispatcher, and only such a one; nothing is compiled."""

import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from triton import knobs
from triton.runtime.jit import JITFunction

from ssd_kernels import calls, get_ssd, launching, repeating, scan_operator
from ssd_kernels.hopper import coverage, launcher, operator
from tests.correctness.compiled import Compiled
from tests.correctness.seen import Seen

pytestmark = pytest.mark.correctness
OPERATOR = torch.ops.ssd_kernels.ssd_scan_hopper.default


def _kernel(x_ptr, y_ptr, state_ptr, work_ptr, FLAG: tl.constexpr):
    """Never compiled."""


class CompiledScan(Compiled):
    """One whose launch notes its addresses alone."""

    @property
    def run(self):
        return lambda *args: self.launches.append(args[9:-1])


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """A Hopper GPU in the place of the CPU; `runs` are the calls that were worked out, `launches` those repeated."""
    active = SimpleNamespace(get_current_device=lambda: -1, get_current_stream=lambda device: 5)
    for module in (launching, calls):
        monkeypatch.setattr(module, "driver", SimpleNamespace(active=active))
    for module in (operator, coverage):
        monkeypatch.setattr(module, "is_hopper", lambda device: True)
    kernel, launches, runs, checks = JITFunction(_kernel), [], [], []
    kernel.run = lambda *args, grid, warmup, **constants: CompiledScan(launches)

    def launch(x, dt, A, B, *others):
        runs.append(x)
        y = torch.empty(x.shape, dtype=x.dtype)
        state = torch.empty((x.shape[0], x.shape[2], x.shape[3], B.shape[3]))
        launching.launch(kernel, (1,), x, y, state, torch.empty(300), FLAG=True)
        return y, state

    def checked(*args, check=scan_operator.check_inputs, **options):
        checks.append(1)
        return check(*args, **options)

    monkeypatch.setattr(launcher, "_launch", launch)
    monkeypatch.setattr(scan_operator, "check_inputs", checked)
    launching.forget()
    repeating.forget()
    yield SimpleNamespace(launches=launches, runs=runs, checks=checks)
    launching.forget()
    repeating.forget()


def inputs(seqlen=70, **changes):
    """Arguments of a scan, some of them changed."""
    wide = {"dtype": torch.bfloat16}
    given = {
        "x": torch.zeros(1, seqlen, 2, 64, **wide), "dt": torch.zeros(1, seqlen, 2), "A": torch.zeros(2),
        "B": torch.zeros(1, seqlen, 1, 128, **wide), "C": torch.zeros(1, seqlen, 1, 128, **wide), "chunk_size": 64,
        "D": torch.zeros(2), "dt_bias": torch.zeros(2), "dt_softplus": True,
    }  # fmt: skip
    return given | changes


def scan(**changes):
    """A call of the Hopper scan."""
    return get_ssd("hopper")(**inputs(**changes))


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_call_like_one_before_is_launched_with_its_own_addresses(world, grad):
    with grad():
        scan()
        x = torch.zeros(1, 70, 2, 64, dtype=torch.bfloat16)
        y = scan(x=x)
    assert (len(world.runs), len(world.checks), len(world.launches)) == (1, 1, 1)
    x_ptr, y_ptr, state_ptr, work_ptr = world.launches[0]
    assert (x_ptr, y_ptr) == (x.data_ptr(), y.data_ptr())
    assert (y.shape, y.dtype, y.is_contiguous(), y.requires_grad) == (x.shape, x.dtype, True, False)
    assert work_ptr - state_ptr == 2 * 64 * 128 * 4  # a state that nobody wants is a part of the workspace
    (call,) = scan_operator._calls
    assert call.size == 2 * 64 * 128 * 4 + 1536


def test_a_gradient_that_is_wanted_later_is_not_lost(world):
    A = torch.zeros(2, requires_grad=True)
    with torch.no_grad():
        for _ in range(3):
            scan(A=A)
    assert (len(world.runs), len(world.launches)) == (1, 2)
    assert scan(A=A).requires_grad


def test_a_state_that_is_wanted_is_a_tensor_of_its_own(world):
    scan()
    for _ in range(2):
        y, state = scan(return_final_state=True)
    assert (len(world.runs), len(world.checks)) == (1, 2)
    assert (state.shape, state.dtype) == ((1, 2, 64, 128), torch.float32)
    assert world.launches[-1][1:3] == (y.data_ptr(), state.data_ptr())


@pytest.mark.parametrize(
    "changes",
    [
        {"seqlen": 71}, {"dt": torch.zeros(1, 70, 2, dtype=torch.bfloat16)}, {"dt": torch.zeros(1, 70, 4)[..., ::2]},
        {"dt": torch.zeros(141)[1:].view(1, 70, 2)}, {"D": None}, {"D": torch.zeros(2, 64)}, {"chunk_size": 128},
        {"dt_softplus": False}, {"dt_limit": (0.0, 1.0)}, {"carry": "none"}, {"return_final_state": True},
        {"initial_state": torch.zeros(1, 2, 64, 128)}, {"cu_seqlens": torch.tensor([0, 30, 70])},
    ],
    ids=[
        "length", "dtype", "stride", "alignment", "none", "shape", "chunk_size", "softplus", "limit", "carry", "state",
        "initial state", "packed",
    ],
)  # fmt: skip
def test_what_differs_in_more_than_addresses_is_checked(world, changes):
    scan()
    scan()
    assert len(world.checks) == 1
    scan(**changes)
    assert len(world.checks) == 2
    scan()
    assert len(world.checks) == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"A": torch.zeros(3)}, "A must have shape"), ({"B": torch.zeros(1, 70, 1, 128)}, "B: dtype must be that of x"),
        ({"D": torch.zeros(2, device="meta")}, "D must be on the device of x"), ({"carry": "some"}, "carry must be"),
        ({"chunk_size": 64.0}, "chunk_size must be an int"), ({"chunk_size": True}, "chunk_size must be an int"),
        ({"dt_limit": (1.0, 0.0)}, "dt_limit must be"), ({"dt": torch.zeros(1, 70, 2, dtype=torch.int32)}, "dt: dtype"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_after_what_is_right(changes, error):
    scan()
    scan()
    with pytest.raises((ValueError, TypeError), match=error):
        scan(**changes)


def test_packed_sequences_that_the_host_can_read_are_read_at_every_call(world):
    packed = inputs(cu_seqlens=torch.tensor([0, 30, 70]))
    for _ in range(2):
        get_ssd("hopper")(**packed)
    assert len(world.checks) == 2
    packed["cu_seqlens"][1] = 80
    with pytest.raises(ValueError, match="never decrease"):
        get_ssd("hopper")(**packed)


def test_a_list_of_limits_is_read_at_every_call(world):
    for limits in ([0.0, 1.0], [0.0, 1.0]):
        scan(dt_limit=limits)
    assert len(world.checks) == 2


class SeenCalls(TorchFunctionMode):
    """A mode that notes the functions it sees."""

    def __init__(self):
        self.operators = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.operators.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Seen, SeenCalls])
def test_a_mode_sees_every_call(mode):
    scan()
    with mode() as seen:
        scan()
    assert any(str(each).startswith("ssd_kernels.ssd_scan_hopper") for each in seen.operators)


def test_a_profiler_shows_every_call():
    scan()
    with torch.profiler.profile(acc_events=True) as profile:
        scan()
    assert [each.count for each in profile.key_averages() if each.key == "ssd_kernels::ssd_scan_hopper"] == [1]


def test_fake_tensors_make_fake_tensors(world):
    scan()
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = scan()
    assert isinstance(y, FakeTensor)
    assert world.launches == []


def test_torch_compile_takes_the_operator_whole(world):
    given = inputs()
    x = given.pop("x")
    scan()
    seen = []

    def backend(graph, example_inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(lambda x: get_ssd("hopper")(x, **given), fullgraph=True, backend=backend)(x)
    assert any("ssd_scan_hopper" in str(each) for each in seen)


# It says that it is deprecated, and that the checks of sizes are not traced.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_torch_jit_has_the_operator():
    given = inputs()
    x = given.pop("x")
    scan()
    graph = torch.jit.trace(lambda x: get_ssd("hopper")(x, **given), x, check_trace=False).graph
    assert "ssd_kernels::ssd_scan_hopper" in str(graph)


def test_a_transform_of_torch_func_goes_through_the_dispatcher(world):
    given = inputs()
    x = given.pop("x")
    scan()
    y = torch.func.functionalize(lambda x: get_ssd("hopper")(x, **given))(x)
    assert (y.shape, len(world.launches), len(world.checks)) == (x.shape, 1, 2)  # by the launcher's own memory
    torch.func.vmap(lambda each: (scan(), each)[1])(torch.ones(2))
    assert len(world.checks) == 3


def test_an_implementation_does_not_take_what_another_remembers(world, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # tensors on a CPU are taken, on a machine with a GPU too
    scan()
    get_ssd("triton")(**inputs())
    assert (len(world.runs), len(world.checks)) == (1, 2)


def test_a_tensor_whose_memory_holds_its_negative_is_not_taken_as_it_is(world):
    scan()
    dt = torch._neg_view(torch.ones(1, 70, 2))
    scan(dt=dt)
    assert len(world.checks) == 2


def test_a_gradient_is_refused_after_calls_without(world):
    scan()
    A = torch.zeros(2, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no backward yet"):
        scan(A=A).sum().backward()
    with torch.no_grad():
        scan(A=A)
    assert len(world.checks) == 2


def test_who_listens_to_triton_hears_of_every_launch(world, monkeypatch):
    scan()
    monkeypatch.setattr(Compiled, "launch_metadata", lambda *args: "metadata", raising=False)
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda metadata: None)
    scan()
    assert len(world.runs) == 2


def test_what_is_forgotten_is_worked_out_anew(world):
    scan()
    repeating.forget()
    scan()
    assert (len(world.runs), len(world.checks)) == (2, 2)


def test_no_tensor_is_kept(world):
    for _ in range(2):
        given = inputs()
        x = weakref.ref(given["x"])
        y = weakref.ref(get_ssd("hopper")(**given))
        world.runs.clear()
        del given
        assert (x(), y()) == (None, None)


def test_threads_launch_with_their_own_addresses(world):
    scan()
    given = [inputs() for _ in range(4)]

    def work(mine):
        for _ in range(50):
            get_ssd("hopper")(**mine)

    threads = [threading.Thread(target=work, args=(each,)) for each in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.launches) == 200
    assert {launch[0] for launch in world.launches} == {each["x"].data_ptr() for each in given}
