"""All 32 layers of Bamba-9B: prefill to 32768 tokens, decode by CUDA graph; that it is right, `test_model` measures.

Transformers' model on the same weights, and other lengths, are in `tests/study/test_models.py`.
"""

import pytest
import torch

from bamba import Bamba, BambaConfig
from tests.perf.model_calls import decode, decode_bytes, matrix_weights, prefill, random_tokens
from tests.perf.problems import DEVICE, DTYPE, ON_GPU, model_flops

pytestmark = [
    pytest.mark.perf,
    # As few rounds as show the spread: a process makes the weights, too, and all of it is measured in several.
    pytest.mark.benchmark(group="whole model", max_time=0.25, min_rounds=3),
    pytest.mark.skipif(not ON_GPU, reason="19.6 GB of weights, and prompts of seconds"),
]

CONFIG = BambaConfig.preset("bamba-9b")
ROUNDS = {8192: 4, 32768: 2}  # of prompts; shorter and longer ones are in `tests/study/test_models.py`
DECODES = [(1, 1024), (1, 32000), (16, 1024), (64, 1024), (256, 1024)]


@pytest.fixture(scope="module")
def model():
    yield Bamba(CONFIG, device=DEVICE, dtype=DTYPE).eval()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("tokens", [pytest.param(n, id=f"bamba-9b-1x{n}") for n in ROUNDS])
@torch.inference_mode()
def test_prefill(benchmark, model, tokens):
    weights = matrix_weights(model)
    benchmark.declare(
        tokens=tokens,
        bytes=weights * DTYPE.itemsize,
        flops=model_flops(CONFIG, weights, tokens),
        device=DEVICE,
        asked=model.ssm,
        ran=model.ssm_in_use,
    )
    call = (model, random_tokens(model.config, 1, tokens), model.new_cache(batch=1, max_len=tokens))
    benchmark.pedantic(prefill, call, rounds=ROUNDS[tokens])


@pytest.mark.parametrize(("batch", "held"), [pytest.param(*n, id=f"bamba-9b-b{n[0]}-after{n[1]}") for n in DECODES])
@torch.inference_mode()
def test_decode(benchmark, model, batch, held):
    cache = model.new_cache(batch=batch, max_len=held + 1)
    weights = matrix_weights(model) + model.lm_head.weight.numel()
    benchmark.declare(
        tokens=batch,
        bytes=decode_bytes(model, cache, held),
        flops=2 * weights * batch,
        device=DEVICE,
        graph=True,
        asked=model.ssm,
        ran=model.ssm_in_use,
    )
    benchmark(decode, model, random_tokens(model.config, batch, 1), cache, held)
