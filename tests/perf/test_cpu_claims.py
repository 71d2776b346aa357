"""What the README claims of the torch scan on a CPU, measured side by side with transformers' torch scan."""

import statistics
import time

import pytest
import torch

from kernelgate.cpu import memory
from ssd_kernels import get_ssd
from tests.perf.problems import ON_GPU, ScanProblem

pytestmark = [pytest.mark.perf, pytest.mark.skipif(ON_GPU, reason="a claim about CPUs")]

THREADS = 2
RATIO = 3
REPETITIONS = 5
CALLS = 7


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(threads)


def calls():
    """Ours, and theirs at the three chunk sizes; Bamba-9B's mixer, 1 × 512 tokens, fp32."""
    inputs = ScanProblem(ssm="chunked", batch=1, seqlen=512).inputs()
    ours, theirs = get_ssd("chunked"), get_ssd("tests.perf.transformers_scan:ssd")
    yield "ours", lambda: ours(**inputs)
    for chunk_size in (64, 128, 256):
        yield f"theirs, {chunk_size}", lambda c=chunk_size: theirs(**{**inputs, "chunk_size": c})


@pytest.mark.usefixtures("two_threads")
def test_the_torch_scan_is_faster_than_transformers(record_property):
    """The median of the ratios of several repetitions: a burst of other work spoils a repetition, not the verdict.

    On two shared cores the median was between 3.8 and 5.4 in seven processes.
    """
    ratios = []
    with torch.inference_mode():
        for _ in range(REPETITIONS):
            seconds = {name: median_seconds(call) for name, call in calls()}
            print(f"\n{', '.join(f'{name}: {value:.4f} s' for name, value in seconds.items())}")
            ours = seconds.pop("ours")
            ratios.append(min(seconds.values()) / ours)
    ratio = statistics.median(ratios)
    record_property("ratio", ratio)
    print(f"{ratio:.2f}x, of {', '.join(f'{each:.2f}' for each in ratios)}")
    assert ratio >= RATIO


def median_seconds(call):
    """Of calls in a row, each finding the memory that the one before gave back."""
    samples = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[1:])


@pytest.mark.usefixtures("two_threads")
def test_the_torch_scan_takes_a_fifth_of_transformers_memory():
    with torch.inference_mode():
        peaks = {name: memory(call)["peak_bytes"].typical for name, call in calls()}
    ours = peaks.pop("ours")
    print(f"\nours {ours / 2**20:.1f} MiB; {', '.join(f'{n}: {v / 2**20:.1f} MiB' for n, v in peaks.items())}")
    assert ours * 5 <= min(peaks.values())
