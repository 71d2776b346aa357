"""The operators of a mixer beside the scan: convolution and gated norm of a prompt, and the steps of decoding."""

import pytest
import torch

from ssd_kernels import get_op
from ssd_kernels.portable.pinned import imposed
from ssd_kernels.registry import default_name
from tests.perf.operator_problems import PROBLEMS
from tests.perf.problems import DEVICE, ON_GPU, SCAN_ERROR, relative_error
from tests.what_ran import watched

pytestmark = [pytest.mark.perf, pytest.mark.benchmark(group="operators")]


def detuned(problem, function):
    """The operator in a configuration that is right and slow."""

    def call(**inputs):
        with imposed(problem.tuned, problem.worse):
            return function(**inputs)

    return call


@pytest.mark.parametrize("problem", [pytest.param(problem, id=problem.name) for problem in PROBLEMS])
def test_operator(benchmark, problem):
    inputs = problem.make()
    name = default_name(DEVICE.type, problem.operator)
    function = get_op(problem.operator, name)
    with torch.inference_mode():
        exact = problem.exact(problem.make())
        _, ran = watched(function, **inputs)
    benchmark.declare(
        tokens=problem.tokens,
        bytes=problem.bytes,
        flops=problem.flops,
        device=DEVICE,
        error=lambda y: relative_error(y, exact),
        error_budget=SCAN_ERROR,
        graph=ON_GPU,
        asked=name,
        ran=ran,
        plants={"detuned": detuned(problem, function)} if name == "triton" and problem.worse else None,
    )
    with torch.inference_mode():
        benchmark(function, **inputs)
