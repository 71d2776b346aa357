"""How long a kernel takes by CUDA events and by CUPTI: `python -m tests.gate.cupti ELEMENTS GRAPH`.

In a process of its own: CUPTI serves one listener, and Triton's profiler Proton, which reads it, is not the only one
that a test run starts. Prints both as seconds, a JSON list.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from triton import profiler as proton

from kernelgate import cuda
from tests.gate.triton_kernel import _increment


def kernels_of(profile: list[Any]) -> Iterator[tuple[str, float, int]]:
    """Name, seconds and launches of every kernel in a profile of Proton's."""
    for node in profile:
        metrics = node.get("metrics", {})
        if metrics.get("count"):
            yield node["frame"]["name"], metrics["time (ns)"] * 1e-9, metrics["count"]
        yield from kernels_of(node.get("children", []))


def main(elements: int, graph: bool) -> tuple[float, float]:
    """Time the increment of that many numbers both ways at once."""
    device = torch.device("cuda", 0)
    x = torch.zeros(elements, device=device)

    def kernel() -> None:
        _increment[(elements // 1024,)](x, BLOCK=1024)

    call = cuda.capture(kernel, device) if graph else kernel
    timer = cuda.device_timer(device)
    cuda.warm_up(call, device)
    lead, overhead = timer.lead_for(call), timer.overhead_of(graph=graph)
    with tempfile.TemporaryDirectory() as folder:
        proton.start(f"{folder}/profile", backend="cupti")
        by_events = statistics.median(timer.time(call, lead, overhead)[0] for _ in range(50))
        proton.finalize()
        kernels = list(kernels_of(json.loads(Path(folder, "profile.hatchet").read_text())))
    (by_cupti,) = [time / count for name, time, count in kernels if name == "_increment"]
    return by_events, by_cupti


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2] == "1")))
