"""The SSD scan: by implementation, carry, chunk size and shape."""

import pytest
import torch

from ssd_kernels import get_ssd
from tests.perf.problems import DEVICE, ON_GPU, SCAN_ERROR, SCANS, exact_scan, relative_error

pytestmark = [pytest.mark.perf, pytest.mark.benchmark(group="scan")]


@pytest.mark.parametrize("problem", SCANS, ids=lambda problem: problem.name)
def test_scan(benchmark, problem):
    inputs = problem.inputs()
    exact = exact_scan(inputs)
    ssd = get_ssd(problem.ssm)
    benchmark.declare(
        tokens=problem.tokens,
        bytes=problem.bytes,
        flops=problem.flops,
        device=DEVICE,
        error=lambda y: relative_error(y, exact),
        error_budget=SCAN_ERROR,
        graph=ON_GPU,
        asked=problem.ssm,
        ran=f"{ssd.__module__}:{ssd.__qualname__}",
    )
    with torch.inference_mode():
        benchmark(ssd, **inputs)
