"""The most this machine moves and multiplies, measured in the process that measures the benchmarks.

A row's bandwidth and arithmetic rate are read against them, and two runs whose ceilings differ did not run on machines
in the same state.
"""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kernelgate.metrics import Metric, metric

if TYPE_CHECKING:
    import torch

COPY = "ceiling_copy"
MATMUL = "ceiling_matmul"

CPU_SECONDS = 0.3


def ceilings(device: "torch.device | None") -> dict[str, Metric]:
    """Copy bandwidth (reads and writes, B/s) and matrix-product rate (FLOP/s); nothing for code without torch."""
    if device is None:
        return {}
    copy, matmul = _measure(device)
    return {
        COPY: metric(copy, "B/s", "ceiling", better="higher"),
        MATMUL: metric(matmul, "FLOP/s", "ceiling", better="higher"),
    }


@functools.cache
def _measure(device: "torch.device") -> tuple[float, float]:
    return _copy_bandwidth(device), _matmul_rate(device)


def _copy_bandwidth(device: "torch.device") -> float:
    import torch

    # Several times the last-level cache on either side, so that memory is what limits the copy.
    source = torch.ones(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _shortest(lambda: target.copy_(source), device)


def _matmul_rate(device: "torch.device") -> float:
    import torch

    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _shortest(lambda: torch.mm(left, right), device)


def _shortest(call: Callable[[], object], device: "torch.device") -> float:
    """The shortest of several times in seconds: a ceiling is what the machine can do, not what it usually does."""
    if device.type == "cuda":
        from kernelgate import cuda

        cuda.warm_up(call, device)
        timer = cuda.device_timer(device)
        return min(timer.time(call, lead=50e-6)[0] for _ in range(20))
    samples: list[float] = []
    while len(samples) < 5 or sum(samples) < CPU_SECONDS:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return min(samples)
