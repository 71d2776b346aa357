"""The whole model: prefill of a prompt and decode of one token, in bamba-9b-perf on a GPU."""

import pytest
import torch

from tests.perf.model_calls import decode, decode_bytes, matrix_weights, prefill, random_tokens
from tests.perf.problems import (
    DECODE_BATCHES,
    DEVICE,
    DTYPE,
    MODEL,
    MODEL_ERROR,
    MODELS,
    ON_GPU,
    PREFILL_TOKENS,
    model_flops,
    relative_error,
    with_exact_twin,
)

pytestmark = [pytest.mark.perf, pytest.mark.benchmark(group="model")]

CONFIG = MODELS[MODEL]
PROMPT = 256


@pytest.fixture(scope="module")
def models():
    return with_exact_twin(CONFIG)


@pytest.mark.parametrize("tokens", [pytest.param(tokens, id=f"{MODEL}-1x{tokens}") for tokens in PREFILL_TOKENS])
def test_prefill(benchmark, models, tokens):
    model, exact_model = models
    token_ids = random_tokens(model.config, 1, tokens)
    with torch.inference_mode():
        exact = exact_model(token_ids, logits_to_keep=1)
        benchmark.declare(
            tokens=tokens,
            bytes=matrix_weights(model) * DTYPE.itemsize,
            flops=model_flops(CONFIG, matrix_weights(model), tokens),
            device=DEVICE,
            error=lambda logits: relative_error(logits, exact),
            error_budget=MODEL_ERROR,
            asked=model.ssm,
            ran=model.ssm_in_use,
        )
        benchmark(prefill, model, token_ids, model.new_cache(batch=1, max_len=tokens))


@pytest.mark.parametrize("batch", [pytest.param(batch, id=f"{MODEL}-b{batch}") for batch in DECODE_BATCHES])
def test_decode(benchmark, models, batch):
    model, exact_model = models
    token_ids = random_tokens(model.config, batch, PROMPT + 1)
    caches = [each.new_cache(batch=batch, max_len=PROMPT + 1) for each in models]
    with torch.inference_mode():
        for each, cache in zip(models, caches, strict=True):
            each(token_ids[:, :-1], cache, logits_to_keep=1)
        exact = decode(exact_model, token_ids[:, -1:], caches[1], PROMPT)
        # Each call moves the state on, so only the first result, taken here, has a known truth.
        error = relative_error(decode(model, token_ids[:, -1:], caches[0], PROMPT), exact)
        weights = matrix_weights(model) + model.lm_head.weight.numel()
        benchmark.declare(
            tokens=batch,
            bytes=decode_bytes(model, caches[0], PROMPT),
            flops=2 * weights * batch,
            device=DEVICE,
            error=lambda _: error,
            error_budget=MODEL_ERROR,
            graph=ON_GPU,
            asked=model.ssm,
            ran=model.ssm_in_use,
        )
        benchmark(decode, model, token_ids[:, -1:], caches[0], PROMPT)
