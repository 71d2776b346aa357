"""What a call of the scan costs the host, and what a process's first call takes, with Triton's cache and without.

README's figures, of 1 × 1024 tokens of Bamba-9B's. Bounds and no baseline, and no gate runs them: hosts differ by more
than devices do.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ssd_kernels import get_ssd
from tests.perf.problems import ON_GPU, ScanProblem

pytestmark = [pytest.mark.study, pytest.mark.skipif(not ON_GPU, reason="measures launches on a GPU")]

ROOT = Path(__file__).resolve().parents[2]
SSD = "triton"
CALL_S, COLD_S = 40e-6, 5.0
WARM_S = 0.3  # the aim is 0.2, of which hosts have been on either side: 0.19 to 0.26
CALLS, ROUNDS, PROCESSES = 60, 12, 3  # so few calls that the device keeps up with the host

FIRST = """
import sys
import torch
from bamba.bench import now
from ssd_kernels import get_ssd
from tests.perf.problems import DEVICE, ScanProblem

ssd = get_ssd(sys.argv[1])
inputs = ScanProblem(ssm="", batch=1, seqlen=1024).inputs()
start = now(DEVICE)
with torch.inference_mode():
    ssd(**inputs)
print("seconds", now(DEVICE) - start)
"""


@torch.inference_mode()
def test_an_eager_call_costs_the_host_at_most_40_us(record_property):
    ssd, inputs = get_ssd(SSD), ScanProblem(ssm="", batch=1, seqlen=1024).inputs()
    rounds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for _ in range(CALLS):
            ssd(**inputs)
        rounds.append((time.perf_counter() - start) / CALLS)
        torch.cuda.synchronize()
    seconds = statistics.median(rounds[1:])  # the first compiles
    record_property("seconds", seconds)
    print(f"\n{seconds * 1e6:.1f} µs a call")
    assert seconds <= CALL_S


def test_a_first_call_compiles_within_seconds_and_finds_what_was_compiled_in_a_fraction_of_one(
    tmp_path, record_property
):
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }  # fmt: skip

    def first_call():
        command = [sys.executable, "-c", FIRST, SSD]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        return float(done.stdout.split("seconds")[-1])

    cold, *warm = (first_call() for _ in range(1 + PROCESSES))
    record_property("cold", cold)
    record_property("warm", statistics.median(warm))
    print(f"\n{cold:.2f} s without Triton's cache, {', '.join(f'{each:.2f}' for each in warm)} s with it")
    assert cold <= COLD_S
    assert statistics.median(warm) <= WARM_S
