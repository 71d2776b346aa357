"""The Triton scan as a torch operator: schema, fake, compile, gradient."""

import subprocess
import sys

import pytest
import torch

import ssd_kernels.portable  # noqa: F401 -- defines the operator
from ssd_kernels import get_ssd
from tests.correctness.problems import DEVICE, Problem

pytestmark = pytest.mark.correctness

PROBLEM = Problem(batch=1, seqlen=20, nheads=4, ngroups=2, headdim=8, d_state=16, chunk_size=8)


def arguments(problem=PROBLEM):
    """The positional arguments of the operator."""
    inputs = problem.inputs()
    tensors = [inputs[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")]
    return (*tensors, problem.chunk_size, problem.softplus, *problem.dt_limit, "all")


def test_opcheck_finds_nothing_wrong_with_schema_and_fake():
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.ssd_kernels.ssd_scan.default, arguments(), test_utils=tests)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    ssd = get_ssd("triton")

    def scaled(x, inputs):
        return ssd(2 * x, **inputs, return_final_state=True)

    inputs = PROBLEM.inputs()
    x = inputs.pop("x")
    with torch.no_grad():
        y, state = torch.compile(scaled, fullgraph=True, dynamic=dynamic, backend="aot_eager")(x, inputs)
        expected_y, expected_state = scaled(x, inputs)
    assert torch.equal(y, expected_y)
    assert torch.equal(state, expected_state)


def test_a_gradient_is_refused_with_what_to_do_instead():
    inputs = PROBLEM.inputs()
    inputs["x"].requires_grad_()
    y = get_ssd("triton")(**inputs)
    with pytest.raises(NotImplementedError, match=r"no backward yet.*chunked"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["recurrent", "chunked"])
def test_the_torch_implementations_are_differentiable(name):
    problem = PROBLEM.but(seqlen=5, chunk_size=2, nheads=2, ngroups=1, headdim=2, d_state=3)
    inputs = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in problem.inputs().items()}
    x, B = inputs.pop("x").requires_grad_(), inputs.pop("B").requires_grad_()
    assert torch.autograd.gradcheck(lambda x, B: get_ssd(name)(x, B=B, **inputs), (x, B))


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
