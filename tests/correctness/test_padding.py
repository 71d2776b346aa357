"""Padding, left or right, changes nothing about the tokens: each row is what it is alone, and so is its cache."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from transformers import BambaConfig as TransformersConfig

from bamba import Bamba, BambaConfig
from tests.correctness.budget import assert_within_budget
from tests.correctness.model_strategies import Case, cases, own_error, pad, randomise, true_logits

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")


def rounding(logits: Tensor) -> Tensor:
    """What two orders of one fp64 computation may differ by."""
    return 1000 * torch.finfo(torch.float64).eps * logits.abs().max()


@pytest.fixture(params=["all", "none"])
def model(request):
    model = Bamba(TINY, carry=request.param, dtype=torch.float64)
    randomise(model, seed=0)
    return model


@torch.inference_mode()
def test_logits_of_a_padded_batch_are_those_of_transformers_for_each_sequence_alone():
    @given(cases(), st.lists(st.integers(1, 20), min_size=2, max_size=3), st.sampled_from(["left", "right"]))
    def check(case: Case, lengths: list[int], side: str):
        sequences = [torch.arange(count) * (row + 3) % 64 for row, count in enumerate(lengths)]
        ids, mask = pad(sequences, side)

        def theirs(model):
            return torch.cat([model(sequence[None]).logits[0] for sequence in sequences])

        def exact(model):
            return torch.cat([true_logits(model, sequence[None])[0] for sequence in sequences])

        reference = case.reference()
        truth = exact(reference)
        by_torch = truth + own_error(reference, theirs, exact, neighbours=1)
        logits = case.ours(reference)(ids, attention_mask=mask)
        assert not logits[mask == 0].any()
        assert_within_budget(logits[mask == 1], truth, by_torch, what="logits")

    check()


@torch.inference_mode()
def test_left_padding_gives_what_transformers_gives_for_it():
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
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_chunk_size=8,
        mamba_proj_bias=False,  # transformers lets this bias through from padding
        pad_token_id=None,
    )
    case = Case(hf_config=hf_config, batch=3, seqlen=21, prompt=1, seed=0)
    ids, mask = pad([torch.arange(5), torch.arange(21), torch.arange(16)], "left")

    def alone(model):
        return torch.cat([model(row[kept == 1][None]).logits[0] for row, kept in zip(ids, mask, strict=True)])

    def exact(model):
        return torch.cat([true_logits(model, row[kept == 1][None])[0] for row, kept in zip(ids, mask, strict=True)])

    reference = case.reference()
    truth = exact(reference)
    by_torch = truth + own_error(reference, alone, exact)
    theirs = reference(ids, attention_mask=mask).logits[mask == 1]
    assert_within_budget(theirs, truth, by_torch, what="transformers' logits")
    assert_within_budget(case.ours(reference)(ids, attention_mask=mask)[mask == 1], truth, by_torch, what="logits")


@torch.inference_mode()
@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")])
def test_rows_of_unequal_length_decode_and_continue_as_each_does_alone(model, sides):
    held, more = [7, 18, 16, 1], [20, 3, 16, 2]
    tokens = torch.arange(4 * 48).view(4, 48) * 7 % TINY.vocab_size
    cache = model.new_cache(batch=4, max_len=38)
    counts = [0] * 4

    def take(lengths, side=None):
        parts = [tokens[row, n : n + length] for row, (n, length) in enumerate(zip(counts, lengths, strict=True))]
        ids, mask = (torch.stack(parts), None) if side is None else pad(parts, side)
        logits = model(ids, cache, attention_mask=mask)
        counts[:] = [n + length for n, length in zip(counts, lengths, strict=True)]
        return list(logits) if mask is None else [row[kept == 1] for row, kept in zip(logits, mask, strict=True)]

    calls = [take(held, sides[0]), take([1] * 4), take([3] * 4), take(more, sides[1]), take([1] * 4), take([1] * 4)]
    assert cache.host_lengths == cache.lengths.tolist() == counts
    for row in range(4):
        alone = model(tokens[row, None, : counts[row]])[0]
        together = torch.cat([logits[row] for logits in calls])
        assert (together - alone).abs().max() <= rounding(alone)


@torch.inference_mode()
def test_the_last_logits_of_each_row_are_kept_wherever_its_padding_is(model):
    sequences = [torch.arange(3), torch.arange(20), torch.arange(1)]
    whole = [model(sequence[None])[0] for sequence in sequences]
    for side in ("left", "right"):
        ids, mask = pad(sequences, side)
        kept = model(ids, attention_mask=mask, logits_to_keep=2)
        assert kept.shape == (3, 2, TINY.vocab_size)
        assert not kept[2, 0].any(), "a sequence of one token has no logits before its last"
        for row, logits in enumerate(whole):
            assert (kept[row, -len(logits[-2:]) :] - logits[-2:]).abs().max() <= rounding(logits)


@torch.inference_mode()
def test_what_stands_in_the_padding_does_not_matter(model):
    ids, mask = pad([torch.arange(3), torch.arange(20)], "left")
    other = torch.where(mask == 1, ids, 77)
    assert torch.equal(model(ids, attention_mask=mask), model(other, attention_mask=mask))


@torch.inference_mode()
def test_a_nan_stays_in_its_row(model):
    model.model.embed_tokens.weight[200] = torch.nan
    ids, mask = pad([torch.tensor([200, 3, 4]), torch.arange(20), torch.arange(2)], "right")
    cache = model.new_cache(batch=3, max_len=22)
    logits = model(ids, cache, attention_mask=mask)
    step = model(torch.tensor([[1], [2], [3]]), cache)
    assert logits[0][mask[0] == 1].isnan().all()
    assert step[0].isnan().all()
    assert torch.isfinite(logits[1:]).all()
    assert torch.isfinite(step[1:]).all()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.uint8])
def test_a_mask_without_padding_is_no_mask(model, dtype):
    ids = torch.arange(2 * 20).view(2, 20)
    assert torch.equal(model(ids, attention_mask=torch.ones(2, 20, dtype=dtype)), model(ids))


def test_gradients_of_a_padded_batch_are_those_of_its_sequences(model):
    sequences = [torch.arange(3), torch.arange(20)]
    ids, mask = pad(sequences, "left")
    model(ids, attention_mask=mask)[mask == 1].logsumexp(dim=-1).sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for sequence in sequences:
        model(sequence[None]).logsumexp(dim=-1).sum().backward()
    for (name, parameter), grad in zip(model.named_parameters(), together, strict=True):
        assert (parameter.grad - grad).abs().max() <= 100 * rounding(grad), name


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        ([[1, 1, 1], [0, 0, 0]], ValueError, "one run, padding before or after it, got no token in row 1"),
        ([[1, 0, 1], [1, 1, 1]], ValueError, "got 2 runs of tokens in row 0"),
        ([[1, 1, 1]], ValueError, r"shape of token_ids, \(2, 3\), .* got \(1, 3\)"),
        ([[1] * 4] * 2, ValueError, r"shape of token_ids, \(2, 3\), .* got \(2, 4\)"),
        ([[1, 1, 2], [0, 1, 1]], ValueError, r"1 for a token and 0 for padding, got \[0, 1, 2\]"),
        ([[1.0] * 3] * 2, TypeError, r"dtype must be bool or an integer, got torch.float32"),
    ],
)
def test_masks_that_are_none_are_named(mask, error, match):
    with pytest.raises(error, match=match):
        Bamba(TINY)(torch.zeros(2, 3, dtype=torch.int64), attention_mask=torch.tensor(mask))


@torch.inference_mode()
def test_only_the_tokens_need_room_in_the_cache():
    model = Bamba(TINY)
    ids, mask = pad([torch.arange(3), torch.arange(10)], "left")
    cache = model.new_cache(batch=2, max_len=10)
    model(ids, cache, attention_mask=mask)
    ids, mask = pad([torch.arange(7), torch.arange(1)], "left")
    with pytest.raises(ValueError, match="row 1 holds 10 of at most max_len 10 tokens, no room for 1 more"):
        model(ids, cache, attention_mask=mask)
    assert cache.host_lengths == cache.lengths.tolist() == [3, 10]
