import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.correctness,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a CUDA device"),
]

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def cuda():
    from kernelgate import cuda

    return cuda


@pytest.fixture
def vector():
    return torch.zeros(2**20, device=DEVICE)


def test_a_spin_takes_as_long_as_its_cycles(cuda):
    """But for the clock, which moves by a tenth and more when others use the device, too."""
    timer = cuda.device_timer(DEVICE)
    seconds, _ = timer.time(lambda: torch.cuda._sleep(int(1e-3 * timer.cycles_per_second)), lead=50e-6)
    assert seconds == pytest.approx(1e-3, rel=0.25)


def test_host_work_before_a_launch_is_not_device_time(cuda, vector):
    def call():
        end = time.perf_counter() + 300e-6
        while time.perf_counter() < end:
            pass
        return vector.add_(1)

    cuda.warm_up(call, DEVICE)
    timer = cuda.device_timer(DEVICE)
    lead = timer.lead_for(call)
    assert min(timer.time(call, lead)[0] for _ in range(10)) < 50e-6
    assert timer.eager_seconds(call) > 300e-6


def test_the_l2_is_cold(cuda):
    l2_bytes = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    small = torch.zeros(l2_bytes // 4, dtype=torch.uint8, device=DEVICE)
    timer = cuda.device_timer(DEVICE)
    cold = min(timer.time(small.sum, lead=100e-6)[0] for _ in range(20))

    def twice():
        small.sum()
        return small.sum()

    both = min(timer.time(twice, lead=100e-6)[0] for _ in range(20))
    assert both - cold < cold  # the second sum finds in the L2 what the first one loaded


def test_a_timer_made_in_inference_mode_works_outside_of_it(cuda, vector):
    with torch.inference_mode():
        timer = cuda.DeviceTimer(DEVICE)
        timer.time(vector.sum, lead=50e-6)
    assert timer.time(vector.sum, lead=50e-6)[0] > 0


def test_a_replay_does_what_the_call_did(cuda, vector):
    replay = cuda.capture(lambda: vector + 1, DEVICE)
    vector.fill_(41)
    assert torch.equal(replay(), torch.full_like(vector, 42))


def test_a_replay_keeps_what_the_call_reads(cuda):
    def captured():
        read = torch.full((2**22,), 41.0, device=DEVICE)
        return cuda.capture(lambda: read + 1, DEVICE)

    replay = captured()
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.zeros(2**22, device=DEVICE) for _ in range(4)]
    assert torch.equal(replay(), torch.full_like(others[0], 42))


def test_memory_is_exact(cuda, vector):
    def call():
        temporary = torch.empty(3 * 2**20, dtype=torch.uint8, device=DEVICE)
        del temporary
        return torch.empty(512, dtype=torch.uint8, device=DEVICE)

    for held in (0, 1000, 30 * 2**20):  # whatever else is in the allocator
        other = torch.empty(held, dtype=torch.uint8, device=DEVICE)
        metrics = cuda.memory(call, DEVICE)
        assert metrics["peak_bytes"].worst == 3 * 2**20
        assert metrics["workspace_bytes"].worst == 3 * 2**20 - 512
        del other


def test_launches_of_any_origin_are_counted(cuda, vector):
    def call():
        return (vector + 1).mul_(2).neg_()

    assert [cuda.device_launches(call, DEVICE) for _ in range(3)] == [3, 3, 3]


def test_a_triton_kernel_has_resources(vector):
    pytest.importorskip("triton")
    from kernelgate.artifacts import triton_artifacts
    from tests.gate.triton_kernel import _increment

    metrics, kernels = triton_artifacts(lambda: _increment[(2**10,)](vector, BLOCK=1024, num_warps=4))
    assert metrics["triton_launches"].values == (1,)
    assert metrics["n_regs:_increment"].worst > 0
    assert metrics["n_spills:_increment"].worst == 0
    assert metrics["num_warps:_increment"].worst == 4
    assert len(kernels[0]["binary"]) == 16


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="what other workers do on the GPU would be timed, too")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("elements", [2**22, 2**24, 2**26])
def test_device_time_is_what_cupti_says(elements, graph):
    """Of a kernel of 10 µs or more, within 1 % or 0.3 µs."""
    command = [sys.executable, "-m", "tests.gate.cupti", str(elements), str(int(graph))]
    measured = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert measured.returncode == 0, measured.stderr
    by_events, by_cupti = json.loads(measured.stdout.splitlines()[-1])
    assert by_cupti > 8e-6
    assert by_events == pytest.approx(by_cupti, rel=0.01, abs=0.3e-6)
