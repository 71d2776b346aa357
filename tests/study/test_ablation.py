"""What each idea of the Hopper scan buys: the scan as it ships, and with one thing changed."""

import pytest

from tests.correctness.problems import HOPPER
from tests.study.calls import inputs_and_truth, measure_scan
from tests.study.variants import VARIANTS

pytestmark = [
    pytest.mark.study,
    pytest.mark.benchmark(group="ablation"),
    pytest.mark.skipif(not HOPPER, reason="changes the Hopper scan, which needs compute capability 9.0"),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", ["1x1024", "1x8192", "8x2048"])
def test_ablation(benchmark, shape, variant):
    changed = VARIANTS[variant]
    problem, _, _ = inputs_and_truth(shape, changed.decay)
    with changed.change(problem):
        measure_scan(benchmark, changed.scan, shape, chunk_size=changed.chunk_size, decay=changed.decay)
