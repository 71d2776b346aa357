"""Calls of the Hopper scan for Nsight Compute, whose figures docs/kernels.md has: `python -m tests.study.profiled`.

Each problem is called once before what is profiled, so that kernels are compiled and loaded. Needs a Hopper GPU.
"""

import torch

from ssd_kernels import get_ssd
from tests.perf.problems import ScanProblem

PROBLEMS = (
    ScanProblem(ssm="", batch=8, seqlen=2048), ScanProblem(ssm="", batch=1, seqlen=8192),
    ScanProblem(ssm="", batch=1, seqlen=8192, nheads=24),
)  # fmt: skip


@torch.inference_mode()
def main() -> None:
    """Call all problems, and again for the profiler."""
    ssd, calls = get_ssd("hopper"), [problem.inputs() for problem in PROBLEMS]
    for inputs in calls:
        ssd(**inputs)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for inputs in calls:
        ssd(**inputs)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
