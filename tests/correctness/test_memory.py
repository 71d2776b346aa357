"""What the scan allocates beside its results: at most 25 MiB for 8192 tokens of Bamba-9B's, on any device."""

import contextlib
import importlib
import importlib.util
import math
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.correctness

NHEADS, HEADDIM, D_STATE = 128, 64, 128
BUDGET = 25 * 2**20 / 8192  # bytes a token
PADDING = 64  # tokens by which a packed sequence may be rounded up
SHAPES = [(1, 1024), (1, 2048), (1, 8192), (1, 32768), (1, 131072), (8, 2048), (32, 1024)]
H200 = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232448, major=9, minor=0)
LAUNCHERS = ("hopper.launcher:run", "portable.operator:_ssd_scan")


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that are made, as if none were given back meanwhile."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::zeros", "aten::new_zeros")):
            self.total += out.nbytes
        return out


def allocated_beside(name, batch, seqlen, nseqs):
    """Bytes beside y and the final state, of a launcher whose kernels are not launched, on tensors without values."""
    module, _, function = name.partition(":")
    launcher = importlib.import_module(f"ssd_kernels.{module}")
    width, bc = NHEADS * HEADDIM, [D_STATE, D_STATE]
    x, B, C = torch.empty(batch, seqlen, width + sum(bc), dtype=torch.bfloat16, device="meta").split([width, *bc], -1)
    dt = torch.empty(batch, seqlen, NHEADS, dtype=torch.bfloat16, device="meta")
    head = torch.empty(NHEADS, device="meta")
    cu_seqlens = torch.empty(nseqs + 1, dtype=torch.int32, device="meta") if nseqs else None
    x, B, C = x.unflatten(-1, (NHEADS, HEADDIM)), B.unflatten(-1, (1, D_STATE)), C.unflatten(-1, (1, D_STATE))
    with contextlib.ExitStack() as stack:
        loaded = [each for name, each in list(sys.modules.items()) if name.startswith("ssd_kernels.")]
        for attribute in ("launch", "device_of"):
            for each in loaded:
                if hasattr(each, attribute):
                    patch = mock.patch.object(each, attribute, return_value=contextlib.nullcontext())
                    stack.enter_context(patch)
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_properties", return_value=H200))
        with Allocated() as made:
            y, final_state, _ = getattr(launcher, function)(
                x, dt, head, B, C, head, head, None, 256, True, 0.0, math.inf, "all", cu_seqlens
            )
    return made.total - y.nbytes - final_state.nbytes


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    ("batch", "seqlen", "nseqs"), [*((*shape, 0) for shape in SHAPES), (1, 1024, 16), (1, 16384, 16)]
)
def test_a_scan_takes_at_most_25_mib_for_8192_tokens(name, batch, seqlen, nseqs):
    pytest.importorskip("triton", reason="the launchers launch Triton kernels")
    if name.startswith("portable") and importlib.util.find_spec("ssd_kernels.portable.walk") is None:
        pytest.skip("the states of all chunks go through memory")
    tokens = batch * seqlen + nseqs * PADDING
    assert 0 < allocated_beside(name, batch, seqlen, nseqs) <= BUDGET * tokens
