"""Decode steps as a CUDA graph: the same logits, bit for bit, as the model makes call by call."""

import pytest
import torch

from bamba import Bamba, BambaConfig
from bamba.bench import bench
from bamba.decode_graph import DecodeGraph
from bamba.generate import ENOUGH_FOR_A_GRAPH, generate
from tests.correctness.model_strategies import randomise

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures CUDA graphs")


def small_model(device="cuda", **options):
    model = Bamba(TINY, device="cpu", **options).eval()
    randomise(model, seed=3)
    return model.to(device)


def test_a_model_on_a_cpu_is_refused():
    model = small_model("cpu")
    with pytest.raises(ValueError, match="model must be on a CUDA device, got cpu"):
        DecodeGraph(model, batch=1, max_len=4)
    with pytest.raises(ValueError, match="cuda_graph: expected a cache and a model on a CUDA device"):
        generate(model, torch.tensor([[1]]), max_new_tokens=2, cuda_graph=True)
    with pytest.raises(ValueError, match="model must be on a CUDA device, got cpu"):
        bench(model, batch=1, prompt_length=2, new_tokens=2, repeats=1, cuda_graph=True)


@on_a_gpu
@pytest.mark.parametrize("carry", ["all", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_step_is_that_of_the_model(carry, dtype):
    model = small_model(carry=carry, dtype=dtype)
    ids = torch.arange(3 * 40, device="cuda").remainder(TINY.vocab_size).view(3, 40)
    graph, cache = DecodeGraph(model, batch=3, max_len=41), model.new_cache(batch=3, max_len=41)
    assert graph.cache.length == 0
    for _ in range(2):  # and once more, after a reset
        assert torch.equal(model(ids[:, :30], graph.cache), model(ids[:, :30], cache))
        for t in range(30, 40):
            assert torch.equal(graph.step(ids[:, t : t + 1]), model(ids[:, t : t + 1], cache))
        assert graph.cache.host_lengths == cache.host_lengths == [40] * 3
        assert torch.equal(graph.cache.lengths, cache.lengths)
        graph.cache.reset()
        cache.reset()


@on_a_gpu
@torch.inference_mode()
def test_a_step_without_room_or_of_another_batch_is_refused():
    graph = DecodeGraph(small_model(), batch=2, max_len=1)
    with pytest.raises(ValueError, match=r"token_ids must be \(batch, 1\) \(2, 1\), got \(1, 1\)"):
        graph.step(torch.zeros(1, 1, dtype=torch.int64, device="cuda"))
    graph.step(torch.zeros(2, 1, dtype=torch.int64, device="cuda"))
    with pytest.raises(ValueError, match="row 0 holds 1 of at most max_len 1 tokens, no room for 1 more"):
        graph.step(torch.zeros(2, 1, dtype=torch.int64, device="cuda"))


@on_a_gpu
def test_generated_tokens_are_the_same_with_and_without():
    model, prompt = small_model(), torch.arange(2 * 7, device="cuda").view(2, 7)
    options = {"max_new_tokens": ENOUGH_FOR_A_GRAPH, "temperature": 0.8, "seed": 5}
    expected = generate(model, prompt, cuda_graph=False, **options)
    assert torch.equal(generate(model, prompt, cuda_graph=True, **options), expected)
    assert torch.equal(generate(model, prompt, **options), expected)
    ragged = [prompt[0], prompt[1, :3]]
    for with_graph, without in zip(
        generate(model, ragged, cuda_graph=True, **options),
        generate(model, ragged, cuda_graph=False, **options),
        strict=True,
    ):
        assert torch.equal(with_graph, without)
