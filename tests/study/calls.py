"""Measuring one scan in one process with the others: the same inputs, truth and count of work for all of them."""

import functools
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernelgate import cuda
from ssd_kernels import get_ssd
from tests.perf.problems import DEVICE, ON_GPU, SCAN_ERROR, ScanProblem, exact_scan, relative_error
from tests.what_ran import watched

CHUNK = 64  # the work counted is that of chunks of so many tokens, whatever an implementation's are
ROUNDS = 25


@functools.lru_cache(maxsize=1)
def inputs_and_truth(shape: str, decay: float = 1.0) -> tuple[ScanProblem, dict[str, Any], Tensor]:
    """Bamba-9B's problem of a shape such as "8x2048", its inputs with A times `decay`, and y in fp64."""
    batch, seqlen = map(int, shape.split("x"))
    problem = ScanProblem(ssm="", batch=batch, seqlen=seqlen, chunk_size=CHUNK)
    inputs = problem.inputs()
    inputs["A"] = inputs["A"] * decay
    return problem, inputs, exact_scan(inputs)


def measure_scan(benchmark: Any, name: str, shape: str, *, chunk_size: int = 256, decay: float = 1.0) -> None:
    """Benchmark an implementation by name on a shape, final state included."""
    problem, inputs, exact = inputs_and_truth(shape, decay)
    ssd, call = get_ssd(name), {**inputs, "chunk_size": chunk_size, "return_final_state": True}
    with torch.inference_mode():
        _, ran = watched(ssd, **call)
        benchmark.declare(
            tokens=problem.tokens,
            bytes=problem.bytes,
            flops=replace(problem, chunk_size=CHUNK).flops,
            device=DEVICE,
            error=lambda results: relative_error(results[0], exact),
            error_budget=SCAN_ERROR,
            graph=ON_GPU,
            asked=name,
            ran=ran,
        )
        benchmark(ssd, **call)


def in_turn(*graphs: Callable[[], Any]) -> list[float]:
    """Median device seconds of each graph, a round of all after another, so that the clock is the same for all."""
    timer = cuda.device_timer(DEVICE)
    for graph in graphs:
        cuda.warm_up(graph, DEVICE)
    lead = max(map(timer.lead_for, graphs))
    overhead = timer.overhead_of(graph=True)
    rounds = [[timer.time(graph, lead, overhead)[0] for graph in graphs] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]
