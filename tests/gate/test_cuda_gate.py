"""The gate on a device, from a process that has not opened it: the gate reports every other program on a GPU."""

import os

import pytest
import torch

pytestmark = [
    pytest.mark.correctness,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a CUDA device"),
    pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="other workers have the GPU open"),
]


@pytest.fixture
def closed_device():
    if torch.cuda.is_initialized():
        pytest.skip("this process has the GPU open: `pytest -n 0 tests/gate/test_cuda_gate.py` has not")


def test_a_benchmark_is_timed_on_the_device(project, closed_device):
    project.configure(gate_machine="")
    project.pytester.makepyfile(
        test_it="""
        import torch

        def test_eager(benchmark):
            x = torch.ones(2**24, device="cuda")
            benchmark.declare(bytes=2**27, flops=2**24, error=lambda out: (out - 2).abs().max(), error_budget=1e-6)
            benchmark(torch.add, x, 1)

        def test_graph(benchmark):
            x = torch.ones(2**24, device="cuda")
            benchmark.declare(bytes=2**27, graph=True, error=lambda out: (out - 2).abs().max(), error_budget=1e-6)
            benchmark(torch.add, x, 1)

        def test_pedantic(benchmark):
            x = torch.ones(2**24, device="cuda")
            benchmark.pedantic(torch.add, args=(x, 1), rounds=10)
        """
    )
    result = project.run("--benchmark-compare", "--gate-processes=2", "--benchmark-max-time=0.2")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["3 NEW *"])
    result = project.run("--benchmark-compare", "--gate-processes=2", "--benchmark-max-time=0.2")
    result.assert_outcomes(passed=3)
