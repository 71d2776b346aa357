"""A long prompt through each layer slice by slice: the same numbers, in memory that does not grow with the prompt."""

import pytest
import torch
from hypothesis import example, given, strategies as st
from torch.distributed._tools.mem_tracker import MemTracker

from bamba import Bamba, BambaConfig, slices
from tests.correctness.model_strategies import randomise

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")
CHUNK = TINY.ssm_chunk_size


def model_of(config=TINY, dtype=torch.float64, **options):
    model = Bamba(config, ssm="chunked", dtype=dtype, **options)
    randomise(model, seed=5)
    return model


def tokens(batch, seqlen):
    return torch.randint(TINY.vocab_size, (batch, seqlen), generator=torch.Generator().manual_seed(seqlen))


@torch.inference_mode()
def results(model, token_ids, prompt):
    """Logits without a cache, and with one of a prompt and what follows it; then what the cache remembers."""
    cache = model.new_cache(batch=token_ids.shape[0], max_len=token_ids.shape[1])
    logits = [model(token_ids), *(model(part, cache) for part in token_ids.tensor_split([prompt], dim=1))]
    return [*logits, *(tensor for layer in cache.layers for tensor in layer)]


@pytest.mark.parametrize("carry", ["all", "none"])
@given(
    batch=st.integers(1, 3),
    prompt=st.integers(2, 5 * CHUNK),
    rest=st.integers(2, 3 * CHUNK),
    size=st.integers(1, 3 * CHUNK),
)
@example(batch=1, prompt=2 * CHUNK + 1, rest=CHUNK + 2, size=CHUNK)  # the last slice is one token
@example(batch=2, prompt=2 * CHUNK, rest=3 * CHUNK, size=CHUNK + 3)  # slices end within chunks
def test_a_prompt_in_slices_is_the_whole_prompt(carry, batch, prompt, rest, size):
    model, token_ids = model_of(carry=carry), tokens(batch, prompt + rest)
    with pytest.MonkeyPatch.context() as patch:
        whole = results(model, token_ids, prompt)
        patch.setattr(slices, "SLICE", size)
        for ours, expected in zip(results(model, token_ids, prompt), whole, strict=True):
            torch.testing.assert_close(ours, expected)  # in fp64: nothing but the order of sums differs


def test_packed_sequences_in_slices_are_the_whole(monkeypatch):
    model, token_ids, bounds = model_of(), tokens(1, 70), torch.tensor([0, 33, 33, 70])
    with torch.inference_mode():
        whole = model(token_ids, cu_seqlens=bounds)
        monkeypatch.setattr(slices, "SLICE", 16)
        torch.testing.assert_close(model(token_ids, cu_seqlens=bounds), whole)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_prompt_of_more_slices_takes_no_more_than_its_hidden_states(monkeypatch, batch):
    monkeypatch.setattr(slices, "SLICE", 2 * CHUNK)
    config = TINY.replace(attn_layers=())  # attention keeps what each token of the prompt asks and is asked
    model = model_of(config, dtype=torch.float32)

    def peak(seqlen):
        with torch.inference_mode(), MemTracker() as memory:
            model(tokens(batch, seqlen), logits_to_keep=1)
        return memory.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]

    few, many = 4 * CHUNK, 16 * CHUNK
    # Twice: of each token its id, position and angles, too, and of a batch a copy of each slice.
    assert 0 < peak(many) - peak(few) <= 2 * batch * (many - few) * config.d_model * 4


def test_training_takes_the_prompt_whole(monkeypatch):
    model, token_ids = model_of(), tokens(1, 50)
    whole = torch.autograd.grad(model(token_ids).square().mean(), model.model.embed_tokens.weight)[0]
    monkeypatch.setattr(slices, "SLICE", 16)
    assert torch.equal(torch.autograd.grad(model(token_ids).square().mean(), model.model.embed_tokens.weight)[0], whole)


def test_a_compiler_sees_the_prompt_whole(monkeypatch):
    hidden = torch.zeros(1, slices.SLICE + 1, 1)
    with torch.inference_mode():
        assert slices.takes_slices(hidden)
        assert not slices.takes_slices(hidden[:, 1:])
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not slices.takes_slices(hidden)
        assert not slices.takes_slices(None)  # nor asks for its length, on which a graph would be guarded
