"""What the studies of the whole model count and time is what they say; on a small model, without a GPU."""

import statistics

import pytest
import torch

from bamba import Bamba, BambaConfig
from bamba.decode_graph import decoding
from tests.perf.model_calls import random_tokens
from tests.perf.problems import DEVICE
from tests.study import generating, whole_model
from tests.study.compiling import EAGER, MODES, POSITION, prepare_decode, prepare_prefill
from tests.study.generating import with_cache, without_cache
from tests.study.whole_model import VARIANTS, evenly_spaced, sharing, step_bytes, weight_bytes

pytestmark = pytest.mark.correctness

CONFIG = BambaConfig.preset("tiny").replace(num_layers=2, attn_layers=(1,))


@pytest.fixture
def model():
    return Bamba(CONFIG, device=DEVICE).eval()


@torch.inference_mode()
def test_variants_share_weights_and_differ_where_chunks_know_nothing_of_another(model):
    models = {name: sharing(model, **options) for name, options in VARIANTS.items()}
    for each in models.values():
        for shared, own in zip(each.parameters(), model.parameters(), strict=True):
            assert shared.data_ptr() == own.data_ptr()
    ids = random_tokens(CONFIG, 1, 40)
    logits = {name: each(ids) for name, each in models.items()}
    torch.testing.assert_close(logits["optimized"], logits["default"])
    assert not torch.allclose(logits["independent"][:, -1], logits["default"][:, -1])


def test_the_bytes_of_a_step_are_those_of_its_parts(model):
    c, cache = CONFIG, model.new_cache(batch=1, max_len=50)
    mixer = c.d_model * c.ssm_d_in_proj + c.ssm_d_inner * c.d_model + c.ssm_conv_dim * (c.ssm_d_conv + 1)
    mixer += 3 * c.ssm_nheads + c.ssm_d_inner
    attention = c.d_model * c.attn_headdim * 2 * (c.attn_nheads + c.attn_nheads_kv)
    each_layer = 3 * c.d_model * c.d_mlp + 2 * c.d_model
    weights = mixer + attention + 2 * each_layer + c.d_model + c.d_model * c.vocab_size
    assert weight_bytes(model) == 4 * weights
    states = c.ssm_nheads * c.ssm_headdim * c.ssm_d_state + c.ssm_conv_dim * (c.ssm_d_conv - 1)
    held = 2 * c.attn_nheads_kv * c.attn_headdim * 8  # after seven tokens
    assert step_bytes(model, cache, 7) == 4 * (weights + 2 * states + held)


@pytest.mark.parametrize(("count", "of"), [(5, 100), (50, 100), (100, 100), (2, 7)])
def test_evenly_spaced_tokens_are_different_and_stand_for_all(count, of):
    numbers = evenly_spaced(count, of)
    assert len(set(numbers)) == count
    assert (numbers[0], numbers[-1]) == (0, of - 1)
    assert statistics.mean(numbers) == pytest.approx((of - 1) / 2, abs=0.5)


@pytest.mark.parametrize("count", [1, 8])
def test_fewer_than_two_tokens_or_more_than_there_are_are_refused(count):
    with pytest.raises(ValueError, match=rf"count must be in \[2, 7\], got {count}"):
        evenly_spaced(count, 7)


def test_a_round_with_a_cache_takes_every_token_and_one_without_those_named(model, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(generating, "now", lambda _: next(clock))
    lengths = []
    model.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    cache, step = decoding(model, batch=1, max_len=40, cuda_graph=False)
    for _ in range(2):  # each round from an empty cache
        seconds = with_cache(model, random_tokens(CONFIG, 1, 20), 8, cache, step)
        assert (seconds.first, seconds.all) == (1, 2)
        assert cache.length == cache.lengths.item() == 27
    assert lengths == [20, *[1] * 7] * 2
    lengths.clear()
    seconds = without_cache(model, random_tokens(CONFIG, 1, 30), 20, [0, 3, 9])
    assert (seconds.first, seconds.all) == (1, 2)
    assert lengths == [20, 23, 29]


@torch.inference_mode()
@pytest.mark.parametrize("prepare", [prepare_prefill, prepare_decode])
def test_a_compiled_call_is_ready_without_breaks_and_compiled_once(model, prepare, monkeypatch):
    monkeypatch.setitem(MODES, "compiled", {"backend": "aot_eager"})
    ids = random_tokens(CONFIG, 1, 60 if prepare is prepare_prefill else POSITION + 1)
    prepare(sharing(model), EAGER, ids)  # loads the kernels, which neither then waits for
    expected = prepare(sharing(model), EAGER, ids)
    prepared = prepare(sharing(model), "compiled", ids)
    assert (prepared.graph_breaks, prepared.recompiles) == (0, 0)
    assert prepared.ready_s > expected.ready_s > 0
    torch.testing.assert_close(prepared.first, expected.first)
    torch.testing.assert_close(prepared.first, model(ids, logits_to_keep=1))
    prepared.call()


@torch.inference_mode()
def test_breaks_and_recompiles_are_counted_where_there_are_some(model, monkeypatch):
    monkeypatch.setitem(MODES, "compiled", {"backend": "eager"})
    ids = random_tokens(CONFIG, 1, 24)
    unrolled = prepare_prefill(sharing(model, ssm="recurrent"), "compiled", ids)
    assert unrolled.recompiles == 3, "the fp64 recurrence is unrolled for each length"
    predict = Bamba._predict

    def broken(*args):
        torch._dynamo.graph_break()
        return predict(*args)

    monkeypatch.setattr(Bamba, "_predict", broken)
    assert prepare_prefill(sharing(model), "compiled", ids).graph_breaks > 0


def test_depths_and_variants_are_those_of_the_prior_study():
    assert 4 in whole_model.DEPTHS
    assert all(config.num_layers == layers for layers, config in whole_model.DEPTHS.items())
