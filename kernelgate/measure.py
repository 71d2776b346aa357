"""Everything measured about a call besides the rounds of its latency."""

import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kernelgate import cpu
from kernelgate.artifacts import triton_artifacts
from kernelgate.ceilings import COPY, MATMUL, ceilings
from kernelgate.declaration import Declaration
from kernelgate.machine import toolchain
from kernelgate.metrics import EAGER, LATENCY, THREADS, Metric, Observation, metric


def observe(call: Callable[[], object] | None, samples: Sequence[float], declaration: Declaration) -> Observation:
    """The observation of one benchmark in this process.

    Args:
        call: Repeats the benchmarked call on the same arguments; None where that is impossible, which leaves memory,
            launches and eager latency out.
        samples: Seconds per call of each round.
        declaration: What the benchmark declared.
    """
    metrics = {LATENCY: metric(statistics.median(samples), "s", "noisy")}
    details: dict[str, Any] = {"device": str(declaration.device or "cpu"), "toolchain": toolchain()}
    if declaration.asked or declaration.ran:
        details["implementation"] = {"asked": declaration.asked, "ran": declaration.ran}
    if declaration.on_cuda and declaration.device is not None:
        from kernelgate import cuda

        details["device_id"] = cuda.identity(declaration.device)
    if call is not None:
        artifacts, details["kernels"] = triton_artifacts(call)
        metrics |= artifacts | _resources(call, declaration)
    if declaration.device is not None and not declaration.on_cuda:
        threads = sys.modules["torch"].get_num_threads()
        details["threads"], metrics[THREADS] = threads, metric(threads, "threads", "info")
    metrics |= ceilings(declaration.device)
    metrics |= _derived(metrics, declaration)
    metrics |= {name: metric(value, "1", "info") for name, value in (declaration.info or {}).items()}
    return Observation(samples=tuple(samples), metrics=metrics, details=details)


def _resources(call: Callable[[], object], declaration: Declaration) -> dict[str, Metric]:
    """Memory, and on CUDA what only a repeated call shows."""
    device = declaration.device
    if device is None:
        return {}
    if device.type == "cpu":
        return cpu.memory(call)
    from kernelgate import cuda

    metrics = cuda.memory(call, device)
    metrics["device_launches"] = metric(cuda.device_launches(call, device), "launches", "exact")
    timer = cuda.device_timer(device)
    metrics[EAGER] = metric(timer.eager_seconds(call), "s", "noisy")
    metrics["event_overhead_s"] = metric(timer.overhead_of(graph=declaration.graph), "s", "info")
    return metrics


def _derived(metrics: dict[str, Metric], declaration: Declaration) -> dict[str, Metric]:
    """Rates that follow from the declared work and the latency, and their share of the ceilings."""
    latency = metrics[LATENCY].typical
    derived = {}
    for name, work, unit, ceiling, fraction in (
        ("throughput", declaration.tokens, "tokens/s", None, ""),
        ("bandwidth", declaration.bytes, "B/s", COPY, "fraction_of_copy"),
        ("arithmetic", declaration.flops, "FLOP/s", MATMUL, "fraction_of_matmul"),
    ):
        if work is not None:
            derived[name] = metric(work / latency, unit, "info", better="higher")
            if ceiling in metrics:
                derived[fraction] = metric(work / latency / metrics[ceiling].typical, "1", "info", better="higher")
    return derived
