"""The Triton scan as a torch operator: schema, fake, compile, gradient."""

import subprocess
import sys

import pytest
import torch

import ssd_kernels.portable  # noqa: F401 -- defines the operator
from ssd_kernels import get_ssd
from tests.correctness.problems import DEVICE, Problem
from tests.precision import upcast

pytestmark = pytest.mark.correctness

PROBLEM = Problem(batch=1, seqlen=20, nheads=4, ngroups=2, headdim=8, d_state=16, chunk_size=8)


PACKED = PROBLEM.but(lengths=(9, 0, 10, 1), by_channel=True)


def arguments(problem, nchunk_states):
    """The positional arguments of the operator."""
    inputs = problem.inputs()
    tensors = [inputs[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")]
    options = (problem.chunk_size, problem.softplus, *problem.dt_limit, "all")
    return (*tensors, *options, inputs.get("cu_seqlens"), nchunk_states)


@pytest.mark.parametrize(
    ("problem", "nchunk_states"),
    [(PROBLEM, 0), (PROBLEM, 3), (PACKED, 0), (PACKED, 5)],
    ids=["plain", "chunk states", "packed", "packed, chunk states"],
)
def test_opcheck_finds_nothing_wrong_with_schema_and_fake(problem, nchunk_states):
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments_ = arguments(problem, nchunk_states)
    torch.library.opcheck(torch.ops.ssd_kernels.ssd_scan.default, arguments_, test_utils=tests)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("problem", "option"),
    [(PROBLEM, "return_final_state"), (PROBLEM, "return_chunk_states"), (PACKED, "return_final_state")],
    ids=["plain", "chunk states", "packed"],
)
def test_compiles_without_a_graph_break(dynamic, problem, option):
    ssd = get_ssd("triton")

    def scaled(x, inputs):
        return ssd(2 * x, **inputs, **{option: True})

    inputs = problem.inputs()
    x = inputs.pop("x")
    with torch.no_grad():
        compiled = torch.compile(scaled, fullgraph=True, dynamic=dynamic, backend="aot_eager")(x, inputs)
        expected = scaled(x, inputs)
    assert all(torch.equal(actual, same) for actual, same in zip(compiled, expected, strict=True))


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a GPU")
def test_packed_sequences_can_be_captured_and_replayed_with_other_bounds():
    inputs = PACKED.inputs()
    ssd = get_ssd("triton")
    ssd(**inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, state = ssd(**inputs, return_final_state=True)
    inputs["cu_seqlens"].copy_(torch.tensor([0, 1, 18, 18, 20]))
    graph.replay()
    expected_y, expected_state = ssd(**inputs, return_final_state=True)
    assert torch.equal(y, expected_y)
    assert torch.equal(state, expected_state)


def test_a_gradient_is_refused_with_what_to_do_instead():
    inputs = PROBLEM.inputs()
    inputs["x"].requires_grad_()
    y = get_ssd("triton")(**inputs)
    with pytest.raises(NotImplementedError, match=r"no backward yet.*chunked"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["recurrent", "chunked"])
@pytest.mark.parametrize("lengths", [None, (3, 0, 2)], ids=["plain", "packed"])
def test_the_torch_implementations_are_differentiable(name, lengths):
    sizes = {"seqlen": 5, "chunk_size": 2, "nheads": 2, "ngroups": 1, "headdim": 2, "d_state": 3}
    inputs = upcast(PROBLEM.but(**sizes, lengths=lengths, by_channel=True).inputs())
    names = ("x", "B", "D", "initial_state")
    tensors = [inputs.pop(name).requires_grad_() for name in names]

    def scan(*tensors):
        return get_ssd(name)(**inputs, **dict(zip(names, tensors, strict=True)), return_chunk_states=True)

    assert torch.autograd.gradcheck(scan, tensors)


@pytest.mark.skipif(DEVICE == "cuda", reason="tensors on a CPU are refused only where the interpreter is off")
def test_on_a_cpu_without_the_interpreter_triton_says_what_to_do():
    code = (
        "import torch, ssd_kernels; x = torch.zeros(1, 4, 1, 16)\n"
        "ssd_kernels.get_ssd('triton')(x, x[..., 0], x[0, 0, :, 0], x, x, chunk_size=4)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "RuntimeError: x must be on a GPU for 'triton', got device cpu" in result.stderr
    assert "TRITON_INTERPRET=1" in result.stderr
