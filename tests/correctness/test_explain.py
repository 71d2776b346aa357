"""What explain says of a call is what the call does, and it launches nothing itself."""

import pytest
import torch
from triton.runtime.jit import KernelInterface

from ssd_kernels import OPERATORS, explain, get_op, launching
from ssd_kernels.registry import default_name, names, target
from tests.correctness.operator_calls import CALLS, CONV, SCAN, STEP, Filler
from tests.correctness.problems import DEVICE

pytestmark = pytest.mark.correctness


@pytest.fixture
def launched(monkeypatch):
    """The kernels launched, in order, each with its keywords."""
    seen = []
    start = KernelInterface.__getitem__

    def watched(kernel, grid):
        def launch(*args, **kwargs):
            seen.append((kernel.fn.__name__, kwargs))
            return start(kernel, grid)(*args, **kwargs)

        return launch

    monkeypatch.setattr(KernelInterface, "__getitem__", watched)
    launching.forget()  # what has been launched before goes past Triton's way of launching
    return seen


def _norm(*leading, width=8):
    fill = Filler(0, torch.float32)
    return {
        "y": fill.normal(*leading, width),
        "z": fill.normal(*leading, width),
        "weight": fill.normal(width),
        "eps": 0.1,
    }


VARIANTS = [
    *((operator, CALLS[operator]) for operator in OPERATORS),
    ("ssd", lambda: {**SCAN.inputs(), "carry": "none"}),
    ("ssd", lambda: {**SCAN.inputs(), "return_final_state": True, "return_chunk_states": True}),
    ("ssd", lambda: {**SCAN.but(initial=False).inputs(), "cu_seqlens": CONV.inputs()["cu_seqlens"]}),
    ("ssd", lambda: {**SCAN.but(seqlen=30, chunk_size=300).inputs()}),
    ("ssd", lambda: SCAN.but(seqlen=0).inputs()),
    ("ssd", lambda: SCAN.but(headdim=80, d_state=160, seqlen=3).inputs()),
    ("causal_conv1d", lambda: CONV.but(packed=False, lengths=(2, 2)).inputs()),
    ("causal_conv1d", lambda: CONV.but(lengths=(0,)).inputs()),
    ("causal_conv1d", lambda: {**CONV.but(lengths=(0,)).inputs(), "return_final_window": True}),
    ("gated_rms_norm", lambda: _norm(2, width=20000)),
    ("gated_rms_norm", lambda: _norm(0)),
    ("ssd_step", lambda: STEP.but(headdim=40, d_state=130, state_dtype=torch.float16).inputs()),
    ("ssd_step", lambda: STEP.but(batch=0, slots=()).inputs()),
]


@pytest.mark.parametrize(("operator", "arguments"), VARIANTS, ids=[f"{v[0]}-{i}" for i, v in enumerate(VARIANTS)])
def test_the_kernels_it_names_are_those_that_run_with_those_configurations(operator, arguments, launched):
    said = explain(operator, implementation="triton", **arguments())
    assert launched == [], "it launched something"
    get_op(operator, "triton")(**arguments())
    assert [kernel.name for kernel in said.kernels] == [name for name, _ in launched]
    for kernel, (_, keywords) in zip(said.kernels, launched, strict=True):
        assert kernel.config.items() <= keywords.items()
        assert {"num_warps", "num_stages"} <= set(kernel.config)


@pytest.mark.parametrize("operator", OPERATORS)
def test_it_says_what_a_default_call_takes_and_why(operator, launched):
    said = explain(operator, **CALLS[operator]())
    name = default_name(DEVICE, operator)
    assert (said.operator, said.implementation, said.function) == (operator, name, target(operator, name))
    assert said.why.startswith(f"the default on {DEVICE}")
    assert bool(said.kernels) == (DEVICE == "cuda")
    assert not launched
    assert str(said).startswith(f"{operator}: {name!r}, {target(operator, name)}: the default on {DEVICE}")


IMPLEMENTATIONS = [(operator, name) for operator in OPERATORS for name in names(operator) if name != "hopper"]


@pytest.mark.parametrize(("operator", "name"), IMPLEMENTATIONS)
def test_it_changes_nothing(operator, name):
    arguments, kept = CALLS[operator](), CALLS[operator]()
    assert "asked for by name" in explain(operator, implementation=name, **arguments).why
    for key, value in kept.items():
        assert torch.equal(arguments[key], value) if torch.is_tensor(value) else arguments[key] == value


def test_its_text_has_a_line_for_each_kernel():
    lines = str(explain("mixer_step", implementation="triton", **CALLS["mixer_step"]())).splitlines()
    assert lines == [
        "mixer_step: 'triton', ssd_kernels.portable.mixer_step:mixer_step: asked for by name",
        "  _causal_conv1d_step_kernel(BLOCK_C=128, num_warps=4, num_stages=2): one for every call",
        "  _ssd_step_kernel(BLOCK_P=4, BLOCK_N=8, num_warps=1, num_stages=2): headdim=4, d_state=8; state in float32",
    ]


def test_of_a_stranger_it_says_that_it_does_not_know():
    said = explain("ssd", torch.zeros(1), implementation="tests.correctness.operator_calls:stranger", whatever=1)
    assert said.kernels == ()
    assert said.why == "asked for by name; not of this package: what it launches is not known"


def test_arguments_may_stand_by_position():
    arguments = CALLS["gated_rms_norm"]()
    positional = [arguments.pop(name) for name in ("y", "z", "weight")]
    assert explain("gated_rms_norm", *positional, **arguments) == explain("gated_rms_norm", **CALLS["gated_rms_norm"]())


def test_a_call_that_would_not_be_taken_is_not_explained():
    with pytest.raises(TypeError, match="missing a required argument: 'weight'"):
        explain("causal_conv1d", torch.zeros(1, 2, 3))
    with pytest.raises(TypeError, match="causal_conv1d takes tensors, got none"):
        explain("causal_conv1d")
    with pytest.raises(NotImplementedError, match="no default causal_conv1d implementation for device 'meta'"):
        explain("causal_conv1d", torch.zeros(1, 2, 3, device="meta"))
    with pytest.raises(ValueError, match=r"name must be one of \('torch', 'triton'\)"):
        explain("causal_conv1d", torch.zeros(1, 2, 3), implementation="fast")
