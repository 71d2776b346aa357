"""Calls that the Hopper kernels leave to the portable ones: not slower than the torch path, replayed or called."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from kernelgate import cuda
from ssd_kernels import get_ssd
from ssd_kernels.hopper.coverage import fits
from ssd_kernels.tune import ERRORS
from tests.perf.problems import DEVICE, ON_GPU, ScanProblem, relative_error
from tests.precision import upcast
from tests.study.calls import in_turn

pytestmark = [pytest.mark.study, pytest.mark.skipif(not ON_GPU, reason="compares times of a GPU")]

SEQLEN = 2048
IMPLEMENTATIONS = ("triton", "chunked")  # the default on a GPU, and torch's


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """A call of Bamba-9B's mixer, but for one thing."""

    dtype: torch.dtype = torch.bfloat16
    sizes: dict[str, int] = field(default_factory=dict)
    return_chunk_states: bool = False

    def inputs(self) -> dict[str, Any]:
        """What a scan is called with."""
        made = ScanProblem(ssm="", batch=1, seqlen=SEQLEN, **self.sizes).inputs()
        for name in ("x", "dt", "B", "C"):
            made[name] = made[name].to(self.dtype)
        return {**made, "return_final_state": True, "return_chunk_states": self.return_chunk_states}


FALLBACKS = {
    "fp16": Fallback(dtype=torch.float16),
    "fp32": Fallback(dtype=torch.float32),
    "fp32, 24 heads": Fallback(dtype=torch.float32, sizes={"nheads": 24}),
    "headdim 32": Fallback(sizes={"headdim": 32}),
    "d_state 16": Fallback(sizes={"d_state": 16}),
    "d_state 16, 24 heads": Fallback(sizes={"d_state": 16, "nheads": 24}),
    "states of chunks": Fallback(return_chunk_states=True),
    "chunks of 127": Fallback(sizes={"chunk_size": 127}),
}


@pytest.mark.parametrize("name", FALLBACKS)
@torch.inference_mode()
def test_what_the_hopper_kernels_leave_is_not_slower_than_torch(name, record_property):
    fallback = FALLBACKS[name]
    inputs = fallback.inputs()
    assert is_left(inputs), "the Hopper kernels take this call"
    calls = [partial(get_ssd(each), **inputs) for each in IMPLEMENTATIONS]
    exact = get_ssd("chunked")(**upcast(inputs))
    for implementation, call in zip(IMPLEMENTATIONS, calls, strict=True):
        errors = [relative_error(result, right) for result, right in zip(call(), exact, strict=True)]
        assert max(errors) <= ERRORS[fallback.dtype], f"{implementation}: relative errors {errors}"
    replayed = in_turn(*[cuda.capture(call, DEVICE) for call in calls])
    eager = [cuda.device_timer(DEVICE).eager_seconds(call) for call in calls]
    for kind, seconds in (("replayed", replayed), ("eager", eager)):
        record_property(kind, seconds)
        print(f"\n{name}, {kind}: {in_microseconds(seconds)}")
    assert replayed[0] <= replayed[1], in_microseconds(replayed)
    assert eager[0] <= eager[1], in_microseconds(eager)


def is_left(inputs: dict[str, Any]) -> bool:
    """Whether the Hopper kernels leave a call to the portable ones, on any GPU."""
    names = ("chunk_size", "dt_softplus", "cu_seqlens", "return_chunk_states")
    options = {name: inputs.get(name) for name in names}
    return fits(inputs["x"], inputs["B"], inputs["C"], dt_low=0.0, **options) is not None


def in_microseconds(seconds: Sequence[float]) -> str:
    """The times of the implementations, in words."""
    return ", ".join(f"{name} {each * 1e6:.0f} µs" for name, each in zip(IMPLEMENTATIONS, seconds, strict=True))
