"""Sequences packed into one row are each what they are alone, and fill one row of the cache each."""

import pytest
import torch
from hypothesis import given, strategies as st

from bamba import Bamba, BambaConfig
from tests.correctness.budget import assert_within_budget
from tests.correctness.model_strategies import Case, cases, own_error, randomise

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")


def pack(sequences):
    """(1, total) token ids and (nseqs + 1,) bounds."""
    lengths = torch.tensor([0] + [len(sequence) for sequence in sequences])
    return torch.cat(sequences)[None], lengths.cumsum(0)


def rounding(logits):
    """What two orders of one fp64 computation may differ by."""
    return 1000 * torch.finfo(torch.float64).eps * logits.abs().max()


@pytest.fixture(params=["all", "none"])
def model(request):
    model = Bamba(TINY, carry=request.param, dtype=torch.float64)
    randomise(model, seed=0)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("carry", ["all", "none"])
def test_packed_prompts_have_the_logits_of_each_alone(carry):
    @given(cases(), st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any))
    def check(case: Case, lengths: list[int]):
        sequences = [torch.arange(count) * (row + 3) % 64 for row, count in enumerate(lengths)]
        token_ids, cu_seqlens = pack(sequences)

        def alone(model):
            return torch.cat([model(sequence[None])[0] for sequence in sequences if len(sequence)])

        def exact(reference):
            return alone(case.ours(reference, torch.float64, ssm="recurrent", carry=carry))

        reference = case.reference()
        truth = exact(reference)
        own = own_error(reference, lambda reference: alone(case.ours(reference, carry=carry)), exact, neighbours=1)
        logits = case.ours(reference, carry=carry)(token_ids, cu_seqlens=cu_seqlens)
        assert_within_budget(logits[0], truth, truth + own, what="logits")

    check()


@torch.inference_mode()
def test_packed_prompts_fill_a_row_of_the_cache_each_and_may_skip_one(model):
    sequences = [torch.arange(7), torch.arange(16) * 3, torch.arange(21) * 5, torch.arange(1)]
    later = [torch.arange(12), torch.arange(0), torch.arange(1), torch.arange(5)]
    steps = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    cache = model.new_cache(batch=4, max_len=24)
    for part in (sequences, later):
        token_ids, cu_seqlens = pack(part)
        model(token_ids, cache, cu_seqlens=cu_seqlens.int())
    logits = torch.cat([model(steps[:, :1], cache), model(steps[:, 1:], cache)], dim=1)
    assert cache.host_lengths == cache.lengths.tolist() == [21, 18, 24, 8]
    for row in range(4):
        alone = model(torch.cat([sequences[row], later[row], steps[row]])[None])[0, -2:]
        assert (logits[row] - alone).abs().max() <= rounding(alone)


@torch.inference_mode()
def test_an_empty_prompt_begins_with_its_first_token(model):
    cache = model.new_cache(batch=2, max_len=5)
    token_ids, cu_seqlens = pack([torch.arange(3), torch.arange(0)])
    model(token_ids, cache, cu_seqlens=cu_seqlens)
    logits = model(torch.tensor([[7, 8], [3, 4]]), cache)
    alone = model(torch.tensor([[3, 4]]))
    assert (logits[1:] - alone).abs().max() <= rounding(alone)


@torch.inference_mode()
def test_the_last_logits_of_each_sequence_are_kept(model):
    sequences = [torch.arange(7), torch.arange(1), torch.arange(0), torch.arange(20)]
    token_ids, cu_seqlens = pack(sequences)
    kept = model(token_ids, cu_seqlens=cu_seqlens, logits_to_keep=2)
    assert kept.shape == (4, 2, TINY.vocab_size)
    assert not kept[1, 0].any()
    assert not kept[2].any()
    for row in (0, 1, 3):
        alone = model(sequences[row][None])[0, -2:]
        assert (kept[row, -len(alone) :] - alone).abs().max() <= rounding(alone)


@torch.inference_mode()
def test_one_packed_sequence_is_that_sequence(model):
    token_ids = torch.arange(40)[None]
    whole = model(token_ids)
    assert (model(token_ids, cu_seqlens=torch.tensor([0, 40])) - whole).abs().max() <= rounding(whole)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"cu_seqlens": [0, 3, 6]}, ValueError, "batch of 1 where cu_seqlens is given, got a batch of 2"),
        ({"cu_seqlens": [0, 3, 5], "row": True}, ValueError, r"rise from 0 to seqlen 6, got \[0, 3, 5\]"),
        ({"cu_seqlens": [1, 3, 6], "row": True}, ValueError, r"rise from 0 to seqlen 6, got \[1, 3, 6\]"),
        ({"cu_seqlens": [0, 4, 3, 6], "row": True}, ValueError, r"rise from 0 to seqlen 6, got \[0, 4, 3, 6\]"),
        ({"cu_seqlens": [6], "row": True}, ValueError, r"shape \(nseqs \+ 1,\), nseqs >= 1, got \(1,\)"),
        ({"cu_seqlens": [[0, 6]], "row": True}, ValueError, r"shape \(nseqs \+ 1,\), nseqs >= 1, got \(1, 2\)"),
        ({"cu_seqlens": [0.0, 6.0], "row": True}, TypeError, "int64 or int32, got torch.float32"),
        ({"cu_seqlens": [0, 6], "row": True, "mask": True}, ValueError, "at most one of them, got both"),
    ],
)
def test_bounds_that_are_none_are_named(arguments, error, match):
    token_ids = torch.zeros(1, 6, dtype=torch.int64) if "row" in arguments else torch.zeros(2, 3, dtype=torch.int64)
    mask = torch.ones_like(token_ids) if "mask" in arguments else None
    with pytest.raises(error, match=match):
        Bamba(TINY)(token_ids, attention_mask=mask, cu_seqlens=torch.tensor(arguments["cu_seqlens"]))


def test_a_cache_holds_as_many_rows_as_there_are_sequences():
    model = Bamba(TINY)
    token_ids, cu_seqlens = pack([torch.arange(3), torch.arange(4)])
    with pytest.raises(ValueError, match="made for a batch of 1, got a batch of 2"):
        model(token_ids, model.new_cache(batch=1, max_len=9), cu_seqlens=cu_seqlens)
