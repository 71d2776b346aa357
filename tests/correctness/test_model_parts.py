"""What surrounds the model's numbers: names, weights, caches, the choice of implementation, and errors."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import BambaConfig as TransformersConfig, BambaForCausalLM

from bamba import Bamba, BambaConfig, Cache
from ssd_kernels import get_op, get_ssd

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")


def small_hf_config(**changes):
    sizes = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "attn_layer_indices": [1],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 2,
        "mamba_d_state": 8,
    }
    return TransformersConfig(**sizes | changes)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_have_the_names_and_shapes_of_transformers(biases, tied):
    names = ("attention_bias", "mlp_bias", "mamba_proj_bias", "mamba_conv_bias")
    hf_config = small_hf_config(tie_word_embeddings=tied, **dict.fromkeys(names, biases))
    theirs = {name: p.shape for name, p in BambaForCausalLM(hf_config).state_dict().items()}
    ours = {name: p.shape for name, p in Bamba(BambaConfig.from_transformers(hf_config)).state_dict().items()}
    assert ours == theirs


def test_a_state_dict_of_transformers_loads_strictly_and_by_value():
    reference = BambaForCausalLM(small_hf_config())
    model = Bamba(BambaConfig.from_transformers(reference.config))
    assert str(model.load_state_dict(reference.state_dict(), strict=True)) == "<All keys matched successfully>"
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in model.state_dict().items())


def test_tied_embeddings_are_one_tensor_also_after_moving():
    model = Bamba(TINY.replace(tie_embeddings=True), device="meta").to_empty(device="cpu").double()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert Bamba(TINY).lm_head.weight is not Bamba(TINY).model.embed_tokens.weight


def test_the_9b_preset_has_the_published_number_of_parameters():
    c = BambaConfig.preset("bamba-9b")
    mamba = c.d_model * (2 * 8192 + 2 * 128 + 128) + 8448 * (4 + 1) + 3 * 128 + 8192 + 8192 * c.d_model
    attention = 2 * c.d_model * 32 * 128 + 2 * c.d_model * 8 * 128
    block = 3 * c.d_model * c.d_mlp + 2 * c.d_model
    expected = 29 * mamba + 3 * attention + 32 * block + 2 * c.vocab_size * c.d_model + c.d_model
    model = Bamba(c, device="meta", dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert round(expected / 1e9, 2) == 9.78


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = Bamba(TINY), Bamba(TINY), Bamba(TINY)
    other.init_weights(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == ("norm" in name or name.endswith(".D")), name


def test_fresh_weights_follow_mamba_2():
    model = Bamba(TINY.replace(ssm_nheads=512, ssm_headdim=1, d_model=256))
    mixer = model.model.layers[0].mamba
    A, step = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert 1.0 <= A.min() < 1.2
    assert 15.8 < A.max() <= 16.0 * (1 + 1e-6)
    assert 1e-3 * (1 - 1e-4) <= step.min() < 1.2e-3
    assert 0.08 < step.max() <= 0.1 * (1 + 1e-4)
    assert torch.equal(mixer.D, torch.ones(512))
    assert model.lm_head.weight.std().item() == pytest.approx(TINY.initializer_range, rel=0.02)
    assert mixer.conv1d.weight.abs().max() <= TINY.ssm_d_conv**-0.5


def test_decay_skip_and_step_bias_stay_in_fp32_in_a_bfloat16_model():
    fp32 = {name for name, p in Bamba(TINY, dtype=torch.bfloat16).named_parameters() if p.dtype == torch.float32}
    layers = [layer for layer in range(TINY.num_layers) if layer not in TINY.attn_layers]
    assert fp32 == {f"model.layers.{layer}.mamba.{name}" for layer in layers for name in ("A_log", "D", "dt_bias")}


def test_weights_without_memory_cannot_be_filled():
    with pytest.raises(RuntimeError, match="meta device"):
        Bamba(TINY, device="meta").init_weights(seed=0)


@torch.inference_mode()
def test_the_cache_is_written_in_place_and_sized_by_the_configuration():
    model = Bamba(TINY, dtype=torch.bfloat16)
    cache = model.new_cache(batch=2, max_len=20)
    memory = [tensor.data_ptr() for layer in cache.layers for tensor in layer]
    model(torch.arange(34).view(2, 17), cache)
    model(torch.arange(2).view(2, 1), cache)
    assert [tensor.data_ptr() for layer in cache.layers for tensor in layer] == memory
    assert (cache.length, cache.lengths.tolist(), cache.position.tolist()) == (18, [18, 18], [18, 18])
    assert {tuple(t.shape): t.dtype for t in cache.layers[0]} == {
        (2, 192, 3): torch.bfloat16,
        (2, 8, 16, 16): torch.float32,
    }
    assert {tuple(t.shape): t.dtype for t in cache.layers[2]} == {(2, 2, 20, 16): torch.bfloat16}
    mamba, attention = 3 * (2 * 192 * 3 * 2 + 2 * 8 * 16 * 16 * 4), 2 * (2 * 2 * 20 * 16 * 2)
    assert cache.nbytes == mamba + attention


@torch.inference_mode()
def test_a_reset_cache_is_as_good_as_new():
    model = Bamba(TINY)
    cache = model.new_cache(batch=1, max_len=12)
    prompt, other = torch.arange(10)[None], torch.arange(50, 60)[None]
    fresh = model(prompt, cache)
    cache.reset()
    model(other, cache)
    cache.reset()
    assert torch.equal(model(prompt, cache), fresh)


@torch.inference_mode()
def test_a_full_cache_refuses_another_token_and_keeps_what_it_holds():
    model = Bamba(TINY)
    cache = model.new_cache(batch=1, max_len=10)
    model(torch.arange(10)[None], cache)
    before = [tensor.clone() for layer in cache.layers for tensor in layer]
    with pytest.raises(ValueError, match="holds 10 of at most max_len 10 tokens, no room for 1 more"):
        model(torch.arange(1)[None], cache)
    assert cache.length == 10
    assert all(torch.equal(a, b) for a, b in zip(before, (t for layer in cache.layers for t in layer), strict=True))


@torch.inference_mode()
def test_a_prompt_longer_than_the_cache_is_refused():
    model = Bamba(TINY)
    with pytest.raises(ValueError, match="holds 0 of at most max_len 9 tokens, no room for 10 more"):
        model(torch.arange(10)[None], model.new_cache(batch=1, max_len=9))


def test_a_cache_of_another_batch_is_refused():
    model = Bamba(TINY)
    with pytest.raises(ValueError, match="made for a batch of 2, got a batch of 1"):
        model(torch.arange(4)[None], model.new_cache(batch=2, max_len=9))


@pytest.mark.parametrize("sizes", [{"batch": 0, "max_len": 4}, {"batch": 4, "max_len": 0}])
def test_a_cache_has_room_for_something(sizes):
    with pytest.raises(ValueError, match=r"(batch|max_len) must be at least 1, got 0"):
        Cache(TINY, **sizes)


def counting_ssd(x, *args, **kwargs):
    """A stranger's implementation: the definition, counted."""
    counting_ssd.calls += 1
    return get_ssd("recurrent")(x, *args, **kwargs)


@torch.inference_mode()
def test_the_named_implementation_is_the_one_that_runs():
    name = f"{__name__}:counting_ssd"
    model = Bamba(TINY, ssm=name)
    counting_ssd.calls = 0
    model(torch.arange(20)[None])
    assert counting_ssd.calls == TINY.num_layers - len(TINY.attn_layers)
    assert (model.ssm, model.ssm_in_use) == (name, name)


def test_auto_is_the_default_of_the_device_that_holds_the_weights():
    model = Bamba(TINY, ssm="auto", device="meta").to_empty(device="cpu")
    assert (model.ssm, model.ssm_in_use) == ("auto", "chunked")
    assert model.model.layers[0].mamba.operators.ssd is get_ssd("chunked")


@pytest.mark.parametrize(("ssm", "kind"), [("chunked", "torch"), ("recurrent", "torch"), ("triton", "triton")])
def test_convolution_norm_and_step_are_of_the_kind_of_the_scan(ssm, kind):
    operators = Bamba(TINY, ssm=ssm, device="cpu").model.layers[0].mamba.operators
    assert operators.ssd is get_ssd(ssm)
    assert all(getattr(operators, name) is get_op(name, kind) for name in operators._fields[1:4])


def test_a_model_on_a_cpu_runs_where_triton_is_not_installed():
    code = """
import sys
sys.modules["triton"] = None  # an import of it fails
import torch
from bamba import Bamba, BambaConfig
Bamba(BambaConfig.preset("tiny"), ssm="chunked", device="cpu")(torch.tensor([[1, 2, 3]]))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


def test_with_a_scan_from_elsewhere_the_other_operators_are_those_of_the_device():
    model = Bamba(TINY, ssm=f"{__name__}:counting_ssd", device="meta").to_empty(device="cpu")
    operators = model.model.layers[0].mamba.operators
    assert operators.ssd is counting_ssd
    assert all(getattr(operators, name) is get_op(name, "torch") for name in operators._fields[1:4])


@torch.inference_mode()
@pytest.mark.parametrize("carry", ["all", "none"])
def test_a_decode_step_reads_nothing_from_the_device(carry):
    model = Bamba(TINY, ssm="chunked", carry=carry, device="meta")  # where there is nothing to read
    cache = model.new_cache(batch=2, max_len=20)
    cache.host_lengths = [3, 7]
    token_ids = torch.zeros(2, 1, dtype=torch.int64, device="meta")
    assert model(token_ids, cache).shape == (2, 1, TINY.vocab_size)
    assert cache.host_lengths == [4, 8]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"carry": "window:2"}, NotImplementedError, r"carry must be one of .*'window:2'"),
        ({"ssm": "fastest"}, ValueError, "'fastest'"),
        ({"ssm": "no_such_package:ssd"}, ModuleNotFoundError, "no_such_package"),
    ],
)
def test_asking_for_what_cannot_run_is_an_error(options, error, match):
    with pytest.raises(error, match=match):
        Bamba(TINY, **options)


@pytest.mark.parametrize(
    ("token_ids", "error", "match"),
    [
        (torch.zeros(5, dtype=torch.int64), ValueError, r"shape \(batch, seqlen\).*\(5,\)"),
        (torch.zeros(1, 0, dtype=torch.int64), ValueError, r"seqlen >= 1, got \(1, 0\)"),
        (torch.zeros(1, 5), TypeError, r"int64 or int32, got torch.float32"),
    ],
)
def test_token_ids_that_do_not_fit_are_named(token_ids, error, match):
    with pytest.raises(error, match=match):
        Bamba(TINY)(token_ids)


@torch.inference_mode()
def test_logits_to_keep_are_the_last_ones():
    model = Bamba(TINY, dtype=torch.float64)
    token_ids = torch.arange(20)[None]
    whole, kept = model(token_ids), model(token_ids, logits_to_keep=3)
    assert kept.shape == (1, 3, TINY.vocab_size)
    rounding = math.sqrt(TINY.d_model) * torch.finfo(torch.float64).eps * whole.abs().max()
    assert (kept - whole[:, -3:]).abs().max() <= rounding


@pytest.mark.parametrize("count", [0, 6])
def test_logits_to_keep_must_be_tokens_of_the_call(count):
    with pytest.raises(ValueError, match=rf"logits_to_keep must be in \[1, seqlen 5\], got {count}"):
        Bamba(TINY)(torch.zeros(1, 5, dtype=torch.int64), logits_to_keep=count)
