"""Adapters of other people's scans: what they pass on, what they refuse, and that nothing takes the peer's place."""

import contextlib
import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

import pytest
import torch

from ssd_kernels.reference import recurrent
from tests.correctness.budget import assert_within_budget, plain_torch, truth
from tests.correctness.problems import DEVICE, Problem
from tests.what_ran import watched

pytestmark = pytest.mark.correctness

PROBLEM = Problem(batch=2, seqlen=21, nheads=4, ngroups=2, headdim=8, d_state=4, chunk_size=16)
PACKED = PROBLEM.but(batch=1, initial=False)
BOUNDS = [0, 5, 5, 20, 21]
# What the real kernels get right on a GPU is what `--ssd` is for.
rounds_as_torch = pytest.mark.skipif(DEVICE == "cuda", reason="mamba-ssm rounds fp32 operands to TF32 on a GPU")
REFUSED = {
    "mamba_ssm": [
        ({"carry": "none"}, "carry must be 'all' for mamba-ssm, got 'none'"),
        ({"return_chunk_states": True}, "return_chunk_states: mamba-ssm does not"),
    ],
    "fla": [
        ({"carry": "none"}, "carry must be 'all' for flash-linear-attention, got 'none'"),
        ({"return_chunk_states": True}, "return_chunk_states: flash-linear-attention does not"),
        ({"chunk_size": 24}, "chunk_size must be a power of 2 and at least 16 for flash-linear-attention, got 24"),
        ({"chunk_size": 8}, "chunk_size must be a power of 2 and at least 16 for flash-linear-attention, got 8"),
    ],
}


def naive_gla(*, q, k, v, g, scale, initial_state, output_final_state, state_v_first, cu_seqlens, chunk_size):
    """What flash-linear-attention documents of `chunk_simple_gla`, written down for states (batch, heads, V, K)."""
    assert state_v_first
    assert q.shape == k.shape
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    outputs, states = [], []
    for i in range(len(bounds) - 1):
        state = v.new_zeros(q.shape[0], q.shape[2], v.shape[3], k.shape[3])
        if initial_state is not None:
            state = initial_state if cu_seqlens is None else initial_state[i : i + 1]
        for t in range(bounds[i], bounds[i + 1]):
            state = torch.exp(g[:, t])[..., None, None] * state + v[:, t, :, :, None] * k[:, t, :, None]
            outputs.append(scale * (state @ q[:, t, :, :, None])[..., 0])
        states.append(state)
    return torch.stack(outputs, dim=1), torch.cat(states) if output_final_state else None


@pytest.fixture
def fla(monkeypatch):
    """The adapter, on a naive peer where the package is absent or does not run: its kernels fail in the interpreter."""
    name = "fla.ops.simple_gla.chunk"
    peer = ModuleType(name)
    peer.chunk_simple_gla = naive_gla
    monkeypatch.setitem(sys.modules, name, peer)
    monkeypatch.delitem(sys.modules, "ssd_kernels.adapters.fla", raising=False)
    yield importlib.import_module("ssd_kernels.adapters.fla")
    sys.modules.pop("ssd_kernels.adapters.fla")


@pytest.fixture
def mamba_ssm(monkeypatch):
    """The adapter, with the first of each kernel's configurations: an interpreter cannot time them."""
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed (docs/peers.md says how)")
    if DEVICE == "cpu":
        from triton.runtime.autotuner import Autotuner

        run = Autotuner.run

        def with_the_first(self, *args, **kwargs):
            self.configs = self.configs[:1]
            return run(self, *args, **kwargs)

        monkeypatch.setattr(Autotuner, "run", with_the_first)
        monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on import
        return importlib.import_module("ssd_kernels.adapters.mamba_ssm")


@pytest.fixture(params=["mamba_ssm", "fla"])
def adapter(request):
    return request.getfixturevalue(request.param)


@rounds_as_torch
@pytest.mark.parametrize("skip", ["head", "channel", None])
def test_an_adapter_passes_on_what_was_asked(adapter, skip):
    inputs = PROBLEM.but(skip=skip is not None, dt_limit=(0.01, 0.1)).inputs()
    if skip == "channel":
        inputs["D"] = torch.randn(PROBLEM.nheads, PROBLEM.headdim, generator=torch.manual_seed(0)).to(DEVICE)
    y, state = adapter.ssd(**inputs, return_final_state=True)
    exact_y, exact_state = truth(inputs)
    without_skip = plain_torch(inputs | {"D": None})
    own_y = without_skip[0] if skip is None else without_skip[0] + inputs["D"].reshape(PROBLEM.nheads, -1) * inputs["x"]
    assert_within_budget(y, exact_y, own_y)
    assert_within_budget(state, exact_state, without_skip[1], what="final_state")
    assert torch.equal(adapter.ssd(**inputs), y)


@rounds_as_torch
def test_an_adapter_passes_on_packed_sequences(adapter):
    inputs, cu_seqlens = PACKED.inputs(), torch.tensor(BOUNDS, device=DEVICE)
    y, state = adapter.ssd(**inputs, cu_seqlens=cu_seqlens, return_final_state=True)
    double = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    exact_y, exact_state = recurrent(**double, cu_seqlens=cu_seqlens, return_final_state=True)
    own_y, own_state = recurrent(**inputs, cu_seqlens=cu_seqlens, return_final_state=True)
    # A sum in fp32 may lose as much again as rounding the exact result does.
    assert_within_budget(y, exact_y, own_y)
    assert_within_budget(state, exact_state, own_state, what="final_state")


@pytest.mark.parametrize(("peer", "i"), [(peer, i) for peer, cases in REFUSED.items() for i in range(len(cases))])
def test_an_adapter_refuses_what_its_peer_cannot_do(peer, i, request):
    options, message = REFUSED[peer][i]
    with pytest.raises(NotImplementedError, match=message):
        request.getfixturevalue(peer).ssd(**{**PROBLEM.inputs(), **options})


def test_an_adapter_refuses_fp64(adapter):
    inputs = PROBLEM.inputs(torch.float64)
    with pytest.raises(NotImplementedError, match=r"x: .* has no scan in float64"):
        adapter.ssd(**inputs)


def test_mamba_ssm_refuses_states_for_packed_sequences_to_start_from(mamba_ssm):
    inputs = PACKED.inputs() | {"initial_state": torch.zeros(4, 4, 8, 4, device=DEVICE)}
    with pytest.raises(NotImplementedError, match="initial_state: mamba-ssm starts packed sequences from zero only"):
        mamba_ssm.ssd(**inputs, cu_seqlens=torch.tensor(BOUNDS, device=DEVICE))


def test_mamba_ssm_is_imported_without_its_package(mamba_ssm):
    assert "mamba_ssm" not in sys.modules
    assert watched(mamba_ssm.ssd, **PROBLEM.inputs())[1] == mamba_ssm.RUNS[0]


def test_a_peer_that_takes_another_path_is_found_out(fla):
    with pytest.raises(RuntimeError, match=r"fla:ssd fell back to another path: fla\.ops\.simple_gla\.chunk:"):
        watched(fla.ssd, **PROBLEM.inputs())
