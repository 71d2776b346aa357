"""How much slower what ships is than the best that the search for configurations finds, measured in turn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kernelgate import cuda
from ssd_kernels import get_op
from ssd_kernels.tune import fastest, measure, search, taking
from ssd_kernels.tune_problems import Problem, linear_problems, operator_problems
from ssd_kernels.tune_scans import hopper_problems, portable_problems
from tests.perf.problems import DEVICE, ON_GPU, ScanProblem
from tests.study.calls import CHUNK, in_turn

pytestmark = [
    pytest.mark.study,
    pytest.mark.benchmark(group="regret"),
    pytest.mark.skipif(not ON_GPU, reason="the search for configurations needs a GPU"),
]

BUDGET = 0.05
SCANS = ((1, 1024), (1, 8192), (8, 2048), (32, 1024))
# The heads of the first have a multiprocessor each, those of the second share them.
PORTABLE_SCANS = ((1, 8192), (8, 2048))
PROBLEMS = {
    "-".join([problem.kernel, *map(str, problem.sizes)]): problem
    for problem in (*operator_problems(8192, 64), *linear_problems(torch.bfloat16), *hopper_problems(8192, SCANS))
}
NAMES = [*PROBLEMS, *(f"chunk_scan-{batch}x{seqlen}" for batch, seqlen in PORTABLE_SCANS)]


def problem_of(name: str) -> Problem:
    """The problem of a name; those of the portable scan ask the device, which collection does not."""
    if name in PROBLEMS:
        return PROBLEMS[name]
    batch, seqlen = map(int, name.removeprefix("chunk_scan-").split("x"))
    (problem,) = portable_problems(torch.bfloat16, [(batch, seqlen)])
    return problem


@pytest.mark.parametrize("name", NAMES)
def test_regret(benchmark, name):
    problem = problem_of(name)
    if problem.implementation == "hopper" and torch.cuda.get_device_capability(DEVICE) != (9, 0):
        pytest.skip("the Hopper scan needs compute capability 9.0")
    inputs = problem.make(torch.bfloat16)
    call = partial(get_op(problem.operator, problem.implementation), **inputs)
    with torch.inference_mode():
        best = fastest(search(problem, torch.bfloat16, measure))
        shipped, found = in_turn(captured(problem, {}, call), captured(problem, best.entry, call))
        regret = shipped / found - 1
        benchmark.declare(
            bytes=moved(inputs, call), flops=operations(problem, inputs), device=DEVICE, graph=True,
            asked=problem.implementation, info={"regret": regret},
        )  # fmt: skip
        benchmark(call)
    assert regret <= BUDGET, f"{best.entry} is faster by {regret:.1%}"


def captured(problem: Problem, entry: dict[str, Any], call: Callable[[], Any]) -> Callable[[], Any]:
    """A graph of the call in one configuration."""
    with taking(problem, entry):
        return cuda.capture(call, DEVICE)


def moved(inputs: dict[str, Any], call: Callable[[], Any]) -> int:
    """Bytes of every tensor once, and of what is updated in place once more."""
    results = call()
    updated = [inputs[name] for name in ("state", "window") if name in inputs]
    tensors = [*inputs.values(), *updated, *(results if isinstance(results, tuple) else (results,))]
    return sum(each.numel() * each.itemsize for each in tensors if isinstance(each, torch.Tensor))


def operations(problem: Problem, inputs: dict[str, Any]) -> int:
    """Operations of a call: by element of what the operator walks, and of a scan as the perf suite counts them."""
    if problem.operator == "ssd":
        batch, seqlen = inputs["x"].shape[:2]
        return ScanProblem(ssm="", batch=batch, seqlen=seqlen, chunk_size=CHUNK).flops
    if problem.operator == "linear_step":
        weights = [inputs[name] for name in ("weight", "up_weight") if inputs[name] is not None]
        return 2 * inputs["x"].shape[0] * sum(weight.numel() for weight in weights)
    walked = {"causal_conv1d": ("x", 12), "causal_conv1d_step": ("x", 12), "gated_rms_norm": ("y", 10)}
    name, each = walked.get(problem.operator, ("state", 6))
    return inputs[name].numel() * each
