"""The SSD scan: by implementation, carry, chunk size and shape."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from ssd_kernels import get_ssd
from ssd_kernels.portable import chunk_scan
from tests.perf.problems import DEVICE, ON_GPU, SCAN_ERROR, exact_scan, relative_error, scans
from tests.what_ran import watched

pytestmark = [pytest.mark.perf, pytest.mark.benchmark(group="scan")]


def pytest_generate_tests(metafunc):
    problems = scans(metafunc.config.getoption("--ssd"))
    metafunc.parametrize("problem", problems, ids=[problem.name for problem in problems])


def detuned(*args, **kwargs):
    """The Triton scan with its longest kernel in half or twice the number of warps."""
    tuned = chunk_scan.chunk_scan_config

    def other(*sizes):
        config = tuned(*sizes)
        return replace(config, num_warps=4 if config.num_warps == 8 else 8)

    with mock.patch.object(chunk_scan, "chunk_scan_config", other):
        return get_ssd("triton")(*args, **kwargs)


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
        plants={"detuned": detuned} if problem.ssm == "triton" else None,
    )
    with torch.inference_mode():
        benchmark(ssd, **inputs)
