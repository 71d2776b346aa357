"""The SSD scan: by implementation, carry, chunk size and shape."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from ssd_kernels import get_ssd
from ssd_kernels.portable import chunk_scan
from ssd_kernels.portable.pinned import imposed
from tests.perf.problems import DEVICE, ON_GPU, SCAN_ERROR, exact_scan, relative_error, scans
from tests.what_ran import watched

pytestmark = [pytest.mark.perf, pytest.mark.benchmark(group="scan")]


def pytest_generate_tests(metafunc):
    problems = scans(metafunc.config.getoption("--ssd"))
    metafunc.parametrize("problem", problems, ids=[problem.name for problem in problems])


# A configuration of the Hopper scan that works for every size and is slow.
DETUNED = {"block": {"CONSUMERS": 1, "SEGMENTS": 1, "PIECES": 1}, "num_warps": 4, "num_stages": 2}


def detuned(ssd):
    """A scan in Triton whose longest kernel is badly configured: half or twice the warps, few stages, no sharing."""
    tuned = chunk_scan.chunk_scan_config

    def other(*sizes, **options):
        config = tuned(*sizes, **options)
        return replace(config, num_warps=4 if config.num_warps == 8 else 8)

    def call(*args, **kwargs):
        with mock.patch.object(chunk_scan, "chunk_scan_config", other), imposed("hopper_scan", DETUNED):
            return ssd(*args, **kwargs)

    return call


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
        plants={"detuned": detuned(ssd)} if problem.ssm in ("triton", "portable") else None,
    )
    with torch.inference_mode():
        benchmark(ssd, **inputs)
