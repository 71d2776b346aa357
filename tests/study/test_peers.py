"""Our scans, mamba-ssm's and flash-linear-attention's in one process: a graph's replay and an eager call of each."""

import pytest

from ssd_kernels import get_ssd
from tests.perf.problems import ON_GPU
from tests.study.calls import measure_scan

pytestmark = [
    pytest.mark.study,
    pytest.mark.benchmark(group="peers"),
    pytest.mark.skipif(not ON_GPU, reason="compares times of a GPU"),
    pytest.mark.filterwarnings("ignore"),  # the peers' own
]

SHAPES = ("1x1024", "1x2048", "1x8192", "1x32768", "1x131072", "8x2048", "32x1024")
# Name, chunk size: mamba-ssm's usual ones, and the default of flash-linear-attention.
SCANS = {
    "triton": ("triton", 256),
    "portable": ("portable", 256),
    "mamba-ssm, chunks of 128": ("ssd_kernels.adapters.mamba_ssm:ssd", 128),
    "mamba-ssm, chunks of 256": ("ssd_kernels.adapters.mamba_ssm:ssd", 256),
    "flash-linear-attention": ("ssd_kernels.adapters.fla:ssd", 64),
}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("shape", SHAPES)
def test_peers(benchmark, shape, scan):
    name, chunk_size = SCANS[scan]
    try:
        get_ssd(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{scan}: {error.name or error} is not installed; docs/peers.md says how")
    measure_scan(benchmark, name, shape, chunk_size=chunk_size)
