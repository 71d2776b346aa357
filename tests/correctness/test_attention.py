"""Which of torch's attention kernels a prompt takes."""

import pytest
import torch
import torch.nn.functional as F

from bamba import Bamba, BambaConfig, attention

pytestmark = pytest.mark.correctness

CONFIG = BambaConfig.preset("tiny")


@pytest.fixture
def allowed(monkeypatch):
    """Whether cuDNN's kernel, which makes a plan for every length, was allowed in each call of torch's attention."""
    asked = []
    attend = F.scaled_dot_product_attention

    def recording(*args, **kwargs):
        asked.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    monkeypatch.setattr(attention, "_WORTH_A_PLAN", 24)
    return asked


@torch.inference_mode()
def test_only_a_long_prompt_makes_a_plan_for_its_length(allowed):
    model = Bamba(CONFIG)
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    model(torch.ones(1, 23, dtype=torch.int64))
    assert allowed == [False] * len(CONFIG.attn_layers)
    assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
    allowed.clear()
    model(torch.ones(1, 24, dtype=torch.int64))
    assert allowed == [enabled] * len(CONFIG.attn_layers)


@torch.inference_mode()
def test_a_prompt_that_continues_makes_a_plan_only_where_it_reaches_far(allowed):
    model = Bamba(CONFIG)
    cache = model.new_cache(batch=1, max_len=40)
    for tokens, plans in ((16, False), (7, False), (9, True)):
        allowed.clear()
        model(torch.ones(1, tokens, dtype=torch.int64), cache=cache)
        assert allowed == [plans] * len(CONFIG.attn_layers)
