"""transformers' model computes what ours does, on its own forms and on others', and none is left behind."""

import sys

import pytest
import torch
from transformers.models.bamba import modeling_bamba

from bamba import Bamba, BambaConfig
from tests.correctness.model_strategies import randomise
from tests.study.model_peers import OURS, THEIRS, decode, prefill, torch_forms, twin

pytestmark = [pytest.mark.correctness, pytest.mark.filterwarnings("ignore")]  # transformers' own

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def models():
    config = BambaConfig.preset("tiny").replace(
        ssm_ngroups=1, ssm_norm_groups=1
    )  # what transformers 5.17 norms as well
    ours = Bamba(config, ssm="chunked", device=DEVICE).eval()
    randomise(ours, seed=3)
    return {OURS: ours, **dict.fromkeys(THEIRS, twin(ours))}


def tokens():
    return (torch.arange(2 * 30, device=DEVICE) % 59).view(2, 30)


@pytest.mark.parametrize("name", THEIRS)
@torch.inference_mode()
def test_each_computes_what_ours_does(models, name):
    if name == "transformers, mamba-ssm":
        pytest.importorskip("ssd_kernels.adapters.mamba_ssm", reason="mamba-ssm is not installed")
        if DEVICE == "cpu":
            pytest.skip("mamba-ssm chooses its configurations by times of a GPU")
    before = vars(modeling_bamba).copy()
    steps = [decode(models[each], tokens(), room=4) for each in (OURS, name)]
    with THEIRS[name]():
        close(prefill(models[name], tokens()), prefill(models[OURS], tokens()))
        for _ in range(2):
            close(steps[1](), steps[0]())
    assert vars(modeling_bamba) == before


def close(ours, expected):
    assert ours.shape == expected.shape
    assert (ours - expected).norm() <= 1e-4 * expected.norm()


def test_the_weights_are_not_copied(models):
    shared = {weight.data_ptr() for weight in models[OURS].parameters()}
    assert {weight.data_ptr() for weight in models["transformers"].parameters()} == shared


def test_a_peer_that_is_not_installed_is_said_to_be_before_anything_is_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "ssd_kernels.adapters.mamba_ssm", None)
    before = vars(modeling_bamba).copy()
    with pytest.raises(ModuleNotFoundError, match="mamba_ssm"):
        THEIRS["transformers, mamba-ssm"]()
    assert vars(modeling_bamba) == before


def test_torch_forms_are_torch_s():
    with torch_forms():
        for name in ("causal_conv1d_fn", "mamba2_chunk_scan"):
            function = vars(modeling_bamba)[name]
            assert function.__code__.co_filename == modeling_bamba.__file__, name
