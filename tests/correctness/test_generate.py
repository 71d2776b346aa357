import math

import pytest
import torch
from transformers import BambaConfig as TransformersConfig, BambaForCausalLM

from bamba import Bamba, BambaConfig, generate
from bamba.generate import stream
from tests.correctness.model_strategies import randomise

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")
PROMPT = torch.arange(2 * 14).view(2, 14)  # decoding crosses into the second chunk of 16


@pytest.fixture(scope="module")
def model():
    model = Bamba(TINY)
    randomise(model, seed=1)
    return model


@pytest.mark.parametrize("carry", ["all", "none"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cache_changes_no_token(carry, temperature):
    model = Bamba(TINY, carry=carry)
    randomise(model, seed=1)
    options = {"max_new_tokens": 24, "temperature": temperature, "seed": 5}
    cached = generate(model, PROMPT, **options)
    assert torch.equal(cached, generate(model, PROMPT, **options, use_cache=False))
    assert len(cached[:, 14:].unique()) > 10, "the model repeats itself, so this shows little"


def test_greedy_tokens_are_those_of_transformers():
    hf_config = TransformersConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        attn_layer_indices=[1],
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=8,
        pad_token_id=None,
        eos_token_id=None,
    )
    reference = BambaForCausalLM(hf_config).eval()
    randomise(reference, seed=1)
    model = Bamba(BambaConfig.from_transformers(hf_config))
    model.load_state_dict(reference.state_dict())
    theirs = reference.generate(PROMPT, max_new_tokens=20, do_sample=False)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=20), theirs)


def test_the_prompt_comes_first_and_the_tokens_are_counted(model):
    ids = generate(model, PROMPT.int(), max_new_tokens=3)
    assert ids.shape == (2, 17)
    assert ids.dtype == torch.int64
    assert torch.equal(ids[:, :14], PROMPT)


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(model):
    first, again, other = (generate(model, PROMPT, max_new_tokens=20, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_seed_tokens_are_drawn_afresh_and_the_global_generator_is_left_alone(model):
    state = torch.get_rng_state()
    first, second = (generate(model, PROMPT, max_new_tokens=20, temperature=1.0) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_low_temperature_takes_the_likeliest_token(model):
    greedy = generate(model, PROMPT, max_new_tokens=8)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=8, temperature=1e-4, seed=0), greedy)


def test_sampled_tokens_follow_the_probabilities(model):
    prompt = torch.zeros(2000, 1, dtype=torch.int64)
    drawn = generate(model, prompt, max_new_tokens=1, temperature=2.0, seed=0)[:, 1]
    with torch.inference_mode():
        expected = torch.softmax(model(prompt[:1])[0, 0] / 2.0, dim=-1)
    counts = torch.bincount(drawn, minlength=TINY.vocab_size)
    deviation = (counts - 2000 * expected) / (2000 * expected * (1 - expected)).sqrt()
    assert deviation.abs().max() < 5  # standard deviations


def test_a_batch_gives_each_prompt_what_it_gets_alone(model):
    together = generate(model, PROMPT, max_new_tokens=10)
    alone = torch.cat([generate(model, prompt[None], max_new_tokens=10) for prompt in PROMPT])
    assert torch.equal(together, alone)


def test_tokens_are_yielded_as_they_come(model):
    tokens = stream(model, PROMPT, max_new_tokens=5)
    first = next(tokens)
    assert first.shape == (2, 1)
    assert torch.equal(torch.cat([first, *tokens], dim=1), generate(model, PROMPT, max_new_tokens=5)[:, 14:])


def test_bfloat16_models_generate():
    assert generate(Bamba(TINY, dtype=torch.bfloat16), PROMPT, max_new_tokens=4).shape == (2, 18)


@pytest.mark.parametrize(
    ("prompt_ids", "error", "match"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), ValueError, r"prompt_ids must have shape .* got \(1, 0\)"),
        (torch.zeros(0, 4, dtype=torch.int64), ValueError, r"prompt_ids must have shape .* got \(0, 4\)"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"prompt_ids must have shape .* got \(4,\)"),
        (torch.tensor([[3, -1]]), ValueError, r"prompt_ids must be in \[0, 256\), got -1 to 3"),
        (torch.tensor([[3, 256]]), ValueError, r"prompt_ids must be in \[0, 256\), got 3 to 256"),
        (torch.zeros(1, 4), TypeError, "int64 or int32, got torch.float32"),
        (torch.zeros(1, 4, dtype=torch.bool), TypeError, "int64 or int32, got torch.bool"),
        (torch.zeros(1, 4, dtype=torch.int64, device="meta"), ValueError, "model's device, cpu, got meta"),
    ],
)
def test_prompts_that_do_not_fit_are_named(model, prompt_ids, error, match):
    with pytest.raises(error, match=match):
        generate(model, prompt_ids, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature must be finite and at least 0, got -1.0"),
        ({"max_new_tokens": 1, "temperature": math.inf}, "temperature must be finite and at least 0, got inf"),
    ],
)
def test_options_out_of_range_are_named_before_anything_runs(model, options, match):
    with pytest.raises(ValueError, match=match):
        stream(model, PROMPT, **options)
