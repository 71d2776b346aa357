import math

import pytest
import torch
from transformers import BambaConfig as TransformersConfig, BambaForCausalLM

from bamba import Bamba, BambaConfig, generate
from bamba.generate import _Sampling, stream
from tests.correctness.model_strategies import pad, randomise

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


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("side", ["left", "right", None])
def test_prompts_of_unequal_lengths_get_what_each_gets_alone(model, side, use_cache):
    prompts = [PROMPT[0, :3], PROMPT[1], PROMPT[0, 2:9]]
    options = {"max_new_tokens": 24, "use_cache": use_cache}
    alone = [generate(model, prompt[None], max_new_tokens=24)[0, len(prompt) :] for prompt in prompts]
    if side is None:
        together = [
            row[len(prompt) :] for row, prompt in zip(generate(model, prompts, **options), prompts, strict=True)
        ]
    else:
        padded, mask = pad(prompts, side)
        ids = generate(model, padded, attention_mask=mask, **options)
        assert torch.equal(ids[:, :14], padded)
        together = ids[:, 14:]
    for row, expected in zip(together, alone, strict=True):
        assert torch.equal(row, expected)


def test_a_stop_token_ends_its_row_and_the_last_one_the_generation(model):
    free = generate(model, PROMPT, max_new_tokens=20)[:, 14:]
    early, late = int(free[0, 2]), int(free[1, 6])
    assert early not in free[1, :6].tolist() + free[0, :2].tolist()
    assert late not in free[1, :6].tolist()
    ids = generate(model, PROMPT, max_new_tokens=20, stop_ids=[early, late], pad_id=9)
    assert ids.shape == (2, 14 + 7)
    assert torch.equal(ids[1, 14:], free[1, :7])
    assert ids[0, 14:].tolist() == free[0, :3].tolist() + [9] * 4
    assert generate(model, PROMPT, max_new_tokens=20, stop_ids=[late, early])[0, 17:].tolist() == [late] * 4
    first, second = generate(model, list(PROMPT.int()), max_new_tokens=20, stop_ids=[early, late])
    assert torch.equal(first, ids[0, :17])
    assert torch.equal(second, ids[1])
    assert first.dtype == torch.int64


def test_without_a_stop_token_met_every_row_runs_to_the_end(model):
    free = generate(model, PROMPT, max_new_tokens=5)
    never = next(token for token in range(TINY.vocab_size) if token not in free[:, 14:].flatten().tolist())
    assert torch.equal(generate(model, PROMPT, max_new_tokens=5, stop_ids=[never]), free)


def test_top_k_of_one_and_a_tiny_top_p_take_the_likeliest_token(model):
    greedy = generate(model, PROMPT, max_new_tokens=8)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"top_k": 5, "top_p": 1e-6}):
        assert torch.equal(generate(model, PROMPT, max_new_tokens=8, temperature=2.0, seed=0, **options), greedy)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, [0.0, 0.6, 0.4, 0.0]),
        ({"top_k": 9}, [0.2, 0.4, 0.8 / 3, 0.4 / 3]),
        ({"top_p": 0.65}, [0.0, 0.6, 0.4, 0.0]),
        ({"top_p": 0.7}, [0.2 / 0.8667, 0.4 / 0.8667, 0.2667 / 0.8667, 0.0]),
        ({"top_p": 1.0}, [0.2, 0.4, 0.8 / 3, 0.4 / 3]),
        ({"top_k": 2, "top_p": 0.59}, [0.0, 1.0, 0.0, 0.0]),
        ({"top_k": 2, "top_p": 0.61}, [0.0, 0.6, 0.4, 0.0]),
    ],
)
def test_sampling_keeps_the_likeliest_tokens_in_proportion(options, expected):
    logits = torch.tensor([[0.2, 0.4, 0.8 / 3, 0.4 / 3]]).log() * 0.5  # at temperature 0.5 these are the probabilities
    sampling = _Sampling(**{"temperature": 0.5, "top_k": None, "top_p": None} | options)
    probabilities = sampling.probabilities(logits)
    assert (probabilities / probabilities.sum())[0].tolist() == pytest.approx(expected, rel=1e-3)


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
        ({"max_new_tokens": 1, "temperature": math.nan}, "temperature must be finite and at least 0, got nan"),
        ({"max_new_tokens": 1, "top_k": 0}, "top_k must be at least 1, got 0"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"max_new_tokens": 1, "top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"max_new_tokens": 1, "stop_ids": [256]}, r"stop_ids must be in \[0, 256\), got 256"),
        ({"max_new_tokens": 1, "stop_ids": [1], "pad_id": -1}, r"pad_id must be in \[0, 256\), got -1"),
        ({"max_new_tokens": 1, "attention_mask": torch.zeros(2, 14, dtype=torch.bool)}, "no token in row 0"),
    ],
)
def test_options_out_of_range_are_named_before_anything_runs(model, options, match):
    with pytest.raises(ValueError, match=match):
        stream(model, PROMPT, **options)


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 1.0}, {"max_new_tokens": 1, "top_k": 2.0}, {"max_new_tokens": 1, "stop_ids": ["a"]}]
)
def test_options_that_are_no_numbers_are_named_before_anything_runs(model, options):
    with pytest.raises(TypeError, match=r"must be an int, got (1.0|2.0|'a')"):
        stream(model, PROMPT, **options)


@pytest.mark.parametrize(
    ("prompts", "options", "match"),
    [
        ([], {}, "at least one prompt, got none"),
        ([torch.arange(3), torch.arange(0)], {}, r"prompt_ids\[1\] must have shape \(seqlen,\).* got \(0,\)"),
        ([torch.arange(6).view(2, 3)], {}, r"prompt_ids\[0\] must have shape \(seqlen,\).* got \(2, 3\)"),
        ([torch.tensor([3, 300])], {}, r"prompt_ids\[0\] must be in \[0, 256\), got 3 to 300"),
        ([torch.arange(3)], {"attention_mask": torch.ones(1, 3)}, "expected none where prompt_ids is a sequence"),
    ],
)
def test_sequences_of_prompts_that_do_not_fit_are_named(model, prompts, options, match):
    with pytest.raises(ValueError, match=match):
        generate(model, prompts, max_new_tokens=2, **options)
