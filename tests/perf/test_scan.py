"""The SSD scan: by implementation, carry, chunk size and shape."""

import pytest
import torch

from ssd_kernels import get_ssd
from tests.perf.problems import DEVICE, ON_GPU, SCAN_ERROR, exact_scan, relative_error, scans
from tests.what_ran import watched

pytestmark = [pytest.mark.perf, pytest.mark.benchmark(group="scan")]


def pytest_generate_tests(metafunc):
    problems = scans(metafunc.config.getoption("--ssd"))
    metafunc.parametrize("problem", problems, ids=[problem.name for problem in problems])


def test_scan(benchmark, problem):
    inputs = problem.inputs()
    exact = exact_scan(inputs)
    ssd = get_ssd(problem.ssm)
    with torch.inference_mode():
        _, ran = watched(ssd, **inputs)
    benchmark.declare(
        tokens=problem.tokens,
        bytes=problem.bytes,
        flops=problem.flops,
        device=DEVICE,
        error=lambda y: relative_error(y, exact),
        error_budget=SCAN_ERROR,
        graph=ON_GPU,
        asked=problem.ssm,
        ran=ran,
    )
    with torch.inference_mode():
        benchmark(ssd, **inputs)
