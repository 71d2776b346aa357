"""A cache takes a sequence in any portions: one token or many at a time."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from bamba import Bamba, BambaConfig
from tests.correctness.budget import assert_within_budget
from tests.correctness.model_strategies import Case, cases, own_error, randomise

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")
CHUNK = TINY.ssm_chunk_size


@torch.inference_mode()
def in_portions(model: Bamba, token_ids: Tensor, portions: list[int]) -> Tensor:
    """The logits of all tokens, taken `portions` tokens a call."""
    batch, seqlen = token_ids.shape
    cache = model.new_cache(batch=batch, max_len=seqlen)
    return torch.cat([model(part, cache) for part in token_ids.split(portions, dim=1)], dim=1)


def portions_of(draw: st.DataObject, case: Case) -> list[int]:
    """Numbers of tokens that add up to the whole, some of them one."""
    cuts = draw.draw(st.lists(st.integers(1, case.seqlen), min_size=1, max_size=5), label="cuts")
    bounds = sorted({0, case.seqlen, *cuts})
    return [end - start for start, end in itertools.pairwise(bounds)]


def traits(case: Case, portions: list[int]) -> set[str]:
    chunk, held, seen = case.config.ssm_chunk_size, 0, set()
    for count in portions:
        if held and count > 1:
            seen.add("from a chunk's start" if held % chunk == 0 else "from within a chunk")
            if held // chunk < (held + count - 1) // chunk and held % chunk:
                seen.add("over a chunk's end")
            if held % chunk and held % chunk + count < chunk:
                seen.add("within one chunk")
            if count < case.config.ssm_d_conv - 1:
                seen.add("shorter than the window")
        if held and count == 1:
            seen.add("decode between")
        held += count
    return seen


@torch.inference_mode()
@pytest.mark.parametrize("carry", ["all", "none"])
def test_a_sequence_in_portions_is_the_whole_sequence(carry):
    seen = Counter()

    @given(cases(), st.data())
    def check(case: Case, data: st.DataObject):
        portions = portions_of(data, case)
        seen.update(traits(case, portions))
        token_ids = case.token_ids()

        def exact(reference):
            return case.ours(reference, torch.float64, ssm="recurrent", carry=carry)(token_ids)

        def whole(reference):
            return case.ours(reference, carry=carry)(token_ids)

        reference = case.reference()
        truth = exact(reference)
        parts = in_portions(case.ours(reference, carry=carry), token_ids, portions)
        assert_within_budget(parts, truth, truth + own_error(reference, whole, exact), what="logits in portions")

    check()
    expected = {"from within a chunk", "over a chunk's end", "decode between", "shorter than the window"}
    assert set(seen) >= expected, "the drawn portions no longer cover what this test is for"


@torch.inference_mode()
@pytest.mark.parametrize("carry", ["all", "none"])
@pytest.mark.parametrize(
    "portions",
    [[CHUNK, 2 * CHUNK], [5, 3, 40], [5, CHUNK - 5, 32], [1, 47], [20, 1, 1, 25, 1], [46, 2], [17, 15, 16]],
    ids=str,
)
def test_wherever_portions_meet_in_a_chunk_fp64_is_exact_to_its_rounding(carry, portions):
    model = Bamba(TINY, carry=carry, dtype=torch.float64)
    randomise(model, seed=0)
    token_ids = torch.arange(2 * 48).view(2, 48) * 7 % TINY.vocab_size
    whole = model(token_ids)
    rounding = 1000 * torch.finfo(torch.float64).eps * whole.abs().max()
    assert (in_portions(model, token_ids, portions) - whole).abs().max() <= rounding


@torch.inference_mode()
def test_a_replayed_step_counts_on_the_device_and_the_host_is_told():
    model = Bamba(TINY, dtype=torch.float64)
    token_ids = torch.arange(12)[None]
    cache = model.new_cache(batch=1, max_len=12)
    model(token_ids[:, :6], cache)
    model(token_ids[:, 6:7], cache)
    cache.host_lengths = [6]  # what a replay leaves
    cache.length = 7
    assert (cache.host_lengths, cache.lengths.tolist()) == ([7], [7])
    last, whole = model(token_ids[:, 7:], cache), model(token_ids)[:, 7:]
    assert (last - whole).abs().max() <= 1000 * torch.finfo(torch.float64).eps * whole.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("portions", [[CHUNK + 1], [1] * 3])
def test_a_cache_that_was_reset_gives_what_a_new_one_gives(portions):
    model = Bamba(TINY, ssm="chunked")
    token_ids = torch.arange(2 * sum(portions)).reshape(2, -1) % TINY.vocab_size
    new, used = (model.new_cache(batch=2, max_len=CHUNK + 1) for _ in range(2))
    model(token_ids.flip(1), used)
    used.reset()
    for part in token_ids.split(portions, dim=1):
        assert torch.equal(model(part, used), model(part, new))
