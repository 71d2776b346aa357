"""A step, a convolution or a norm like one before launches the same with its own addresses; nothing is compiled."""

from types import SimpleNamespace

import pytest
import torch
from triton import knobs
from triton.runtime.jit import JITFunction

from ssd_kernels import again, calls, get_op, launching, repeating
from ssd_kernels.portable import causal_conv1d, causal_conv1d_step, gated_rms_norm, pinned, ssd_step
from tests.correctness.compiled import Compiled

pytestmark = pytest.mark.correctness


def _step():
    state, x, B = torch.zeros(3, 4, 8, 16), torch.zeros(2, 4, 8), torch.zeros(2, 2, 16)
    vectors = {name: torch.zeros(4) for name in ("A", "D", "dt_bias")}
    rows = {"dt": torch.zeros(2, 4), "z": torch.zeros(2, 4, 8), "C": torch.zeros(2, 2, 16)}
    return {"state": state, "x": x, "B": B, **vectors, **rows, "dt_softplus": True}


def _conv_step():
    x, window = torch.zeros(2, 12)[:, ::2], torch.zeros(3, 6, 3)
    return {"x": x, "window": window, "weight": torch.zeros(6, 4), "bias": torch.zeros(6), "activation": "silu"}


def _conv():
    return {"x": torch.zeros(2, 9, 6), "weight": torch.zeros(6, 4), "initial_window": torch.zeros(2, 6, 3)}


def _norm():
    return {"y": torch.zeros(2, 3, 8), "z": torch.zeros(2, 3, 8), "weight": torch.zeros(8), "eps": 1e-5, "groups": 2}


OPERATORS = {
    "ssd_step": (ssd_step, "_ssd_step_kernel", "check_ssd_step", _step),
    "causal_conv1d_step": (causal_conv1d_step, "_causal_conv1d_step_kernel", "check_conv_step", _conv_step),
    "causal_conv1d": (causal_conv1d, "_causal_conv1d_kernel", "check_conv", _conv),
    "gated_rms_norm": (gated_rms_norm, "_gated_rms_norm_kernel", "check_norm", _norm),
}


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """A GPU in the place of the CPU: the names of the operators that were checked, and what was launched."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # tensors on a CPU are taken, on a machine with a GPU too
    active = SimpleNamespace(get_current_device=lambda: -1, get_current_stream=lambda device: 5)
    for module in (launching, calls):
        monkeypatch.setattr(module, "driver", SimpleNamespace(active=active))
    checks, launches = [], []
    for operator, (module, name, check, _) in OPERATORS.items():
        kernel = JITFunction(getattr(module, name).fn)
        kernel.run = lambda *args, grid, warmup, **constants: Compiled(launches)
        monkeypatch.setattr(module, name, kernel)

        monkeypatch.setattr(module, check, noting(checks, operator, getattr(module, check)))
    launching.forget()
    repeating.forget()
    yield SimpleNamespace(checks=checks, launches=launches)
    launching.forget()
    repeating.forget()


def noting(checks, operator, check):
    """A check that notes whose it is."""

    def checked(*args, **options):
        checks.append(operator)
        return check(*args, **options)

    return checked


def run(operator, changes=None):
    """Call an operator; returns its outputs and the arguments that tell one call from another."""
    given = OPERATORS[operator][3]() | (changes or {})
    outputs = get_op(operator, "triton")(**given)
    return given, outputs if isinstance(outputs, tuple) else (outputs,)


def named(launch, given, outputs):
    """A launch with the names of tensors in the place of their addresses."""
    names = {tensor.data_ptr(): name for name, tensor in given.items() if isinstance(tensor, torch.Tensor)}
    names |= {output.data_ptr(): f"output {i}" for i, output in enumerate(outputs)}
    return [names.get(each, each) if type(each) is int and each > 2**20 else each for each in launch]


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("operator", "changes"),
    [
        *((operator, {}) for operator in OPERATORS), ("causal_conv1d", {"return_final_window": True}),
        ("ssd_step", {"D": None, "z": None, "dt_limit": (0.1, 1.0)}),
    ],
    ids=[*OPERATORS, "conv with its window", "step without skip and gate"],
)  # fmt: skip
def test_a_call_like_one_before_launches_what_it_would_launch_anew(world, operator, changes, grad):
    with grad():
        run(operator, changes)
        again_given, again_made = run(operator, changes)
        repeating.forget()
        anew_given, anew_made = run(operator, changes)
    assert world.checks == [operator] * 2
    repeated, anew = world.launches
    assert named(repeated, again_given, again_made) == named(anew, anew_given, anew_made)
    for one, other in zip(again_made, anew_made, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        assert (one.requires_grad, one.is_inference()) == (other.requires_grad, other.is_inference())


@pytest.mark.parametrize(
    ("operator", "changes"),
    [
        ("ssd_step", {"D": None}), ("ssd_step", {"D": torch.zeros(4, 8)}), ("ssd_step", {"dt_softplus": False}),
        ("ssd_step", {"dt_limit": (0.0, 1.0)}), ("ssd_step", {"state": torch.zeros(4, 4, 8, 16)}),
        ("ssd_step", {"state": torch.zeros(3, 4, 16, 8).mT}), ("causal_conv1d_step", {"activation": None}),
        ("causal_conv1d_step", {"x": torch.zeros(2, 6)}), ("causal_conv1d", {"return_final_window": True}),
        ("causal_conv1d", {"activation": "silu"}), ("gated_rms_norm", {"eps": 1e-6}), ("gated_rms_norm", {"groups": 1}),
        ("gated_rms_norm", {"z": torch.zeros(49)[1:].view(2, 3, 8)}),
    ],
    ids=str,
)  # fmt: skip
def test_what_differs_in_more_than_addresses_is_checked(world, operator, changes):
    run(operator)
    run(operator)
    assert len(world.checks) == 1
    run(operator, changes)
    assert len(world.checks) == 2
    run(operator)
    assert len(world.checks) == 2


@pytest.mark.parametrize(
    ("operator", "changes", "error"),
    [
        ("gated_rms_norm", {"groups": True}, "groups must be an int"), ("ssd_step", {"A": torch.zeros(5)}, "A must"),
        ("ssd_step", {"dt_limit": (1.0, 0.0)}, "dt_limit"), ("causal_conv1d", {"activation": "gelu"}, "activation"),
        ("causal_conv1d_step", {"window": torch.zeros(3, 6, 2)}, "window must have shape"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_after_what_is_right(operator, changes, error):
    for groups in ({}, {"groups": 1}) if operator == "gated_rms_norm" else ({},):
        run(operator, groups)
        run(operator, groups)
    with pytest.raises((ValueError, TypeError), match=error):
        run(operator, changes)


def test_which_of_two_alike_is_none_makes_another_call(world):
    for _ in range(2):
        run("ssd_step", {"z": None, "D": None})
        run("ssd_step", {"z": None, "dt_bias": None})
    assert len(world.checks) == 2


def test_an_operator_does_not_take_what_another_remembers(world):
    run("causal_conv1d")
    made = torch.zeros(1)
    inputs = [OPERATORS["causal_conv1d"][3]().get(name) for name in ("x", "weight", "bias", "initial_window", "cu")]
    assert again.again("another", lambda: (made,), tuple(inputs), (None, False)) == (made,)
    assert world.launches == []


@pytest.mark.parametrize("operator", ["ssd_step", "causal_conv1d_step"])
def test_slots_that_the_host_can_read_are_read_at_every_call(operator):
    slots = torch.tensor([0, 2])
    for _ in range(2):
        run(operator, {"slots": slots})
    slots[1] = 0
    with pytest.raises(ValueError, match="slots must be different"):
        run(operator, {"slots": slots})


def test_bounds_that_the_host_can_read_are_read_at_every_call():
    packed = {"x": torch.zeros(1, 9, 6), "initial_window": None, "cu_seqlens": torch.tensor([0, 4, 9])}
    for _ in range(2):
        run("causal_conv1d", packed)
    packed["cu_seqlens"][1] = 10
    with pytest.raises(ValueError, match="never decrease"):
        run("causal_conv1d", packed)


def test_a_gradient_is_refused_after_calls_without():
    run("gated_rms_norm")
    weight = torch.zeros(8, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no backward yet"):
        run("gated_rms_norm", {"weight": weight})[1][0].sum().backward()


def test_a_profiler_and_who_listens_to_triton_see_every_call(world, monkeypatch):
    run("ssd_step")
    with torch.profiler.profile(acc_events=True) as profile:
        run("ssd_step")
    assert [each.count for each in profile.key_averages() if each.key == "ssd_kernels::ssd_step"] == [1]
    monkeypatch.setattr(Compiled, "launch_metadata", lambda *args: "metadata", raising=False)
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda metadata: None)
    run("ssd_step")
    assert world.launches[-1][6] == "metadata"


def test_a_configuration_imposed_is_that_of_the_next_launch(world):
    run("causal_conv1d_step")
    with pinned.imposed("causal_conv1d_step", {"block": {"BLOCK_C": 2}, "num_warps": 1, "num_stages": 2}):
        run("causal_conv1d_step")
        run("causal_conv1d_step")
    assert world.launches[-1][0] == 2 * 3
    run("causal_conv1d_step")
    assert len(world.checks) == 3


def test_torch_compile_takes_the_operator_whole():
    run("gated_rms_norm")
    seen = []

    def backend(graph, example_inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    norm = get_op("gated_rms_norm", "triton")
    torch.compile(lambda y, z, weight: norm(y, z, weight, eps=1e-5), fullgraph=True, backend=backend)(
        torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(8)
    )
    assert any("gated_rms_norm" in each for each in seen)


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_made_is_as_torch_makes_it_by_the_graphs_allocator_or_without(monkeypatch, inference):
    for missing in (False, True):
        if missing:
            monkeypatch.delattr(torch._C._dynamo.guards, "_empty_strided_cpu")
        with torch.inference_mode(inference):
            made = calls.empty_on(torch.device("cpu"))((2, 3), (3, 1), torch.bfloat16)
            wanted = torch.empty((2, 3), dtype=torch.bfloat16)
        for each in (made, wanted):
            assert (each.shape, each.stride(), each.dtype) == ((2, 3), (3, 1), torch.bfloat16)
            assert (each.device.type, each.requires_grad, each.is_inference()) == ("cpu", False, inference)
    assert not [*again._calls]
