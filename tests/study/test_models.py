"""Bamba-9B by this package and by transformers on the same weights: a prompt's prefill, and a token as `generate` does.

    pytest -m study tests/study/test_models.py --benchmark-json models.json

About a minute on an H200, a third of it 131072 tokens in one call, and 50 GB of its memory.
"""

from contextlib import nullcontext
from functools import cached_property, partial

import pytest
import torch

from bamba import Bamba, BambaConfig
from kernelgate import cuda
from tests.perf.model_calls import decode_bytes, matrix_weights, random_tokens
from tests.perf.problems import DEVICE, DTYPE, MODEL_ERROR, ON_GPU, model_flops, relative_error
from tests.study.model_peers import OURS, THEIRS, decode, prefill, twin, without_plans

pytestmark = [
    pytest.mark.study,
    pytest.mark.skipif(not ON_GPU, reason="19.6 GB of weights, and prompts of seconds"),
    pytest.mark.filterwarnings("ignore"),  # transformers' own
]

CONFIG = BambaConfig.preset("bamba-9b")
LONGEST = {OURS: 131072, "transformers": 1024, "transformers, patched": 32768, "transformers, mamba-ssm": 32768}
TOO_LONG = {
    "transformers": "its torch scan holds 4 GiB of products for each 256 tokens at once",
    "transformers, patched": "seconds a call, and what is long already shows at 32768",
    "transformers, mamba-ssm": "seconds a call, and what is long already shows at 32768",
}
SECONDS = 32768  # tokens of which a call takes a second
HELD, ROOM = 1024, 256  # tokens that a cache holds, and that a warm-up and what is measured then append
# Two results of 32 layers, each of which may be off by what is allowed to four layers, times the root of eight.
ERROR = 4 * MODEL_ERROR


class Models:
    """Ours and transformers' on the same weights, made when they are asked for, and the logits that ours gave."""

    def __init__(self):
        self._logits = {}

    @cached_property
    def ours(self):
        return Bamba(CONFIG, device=DEVICE, dtype=DTYPE).eval()

    @cached_property
    def theirs(self):
        return twin(self.ours)

    def of(self, name):
        return self.ours if name == OURS else self.theirs

    def logits(self, name, make):
        if name not in self._logits:
            self._logits[name] = make().clone()
        return self._logits[name]


@pytest.fixture(scope="module")
def models():
    yield Models()
    torch.cuda.empty_cache()


def running(model):
    """What transformers runs on meanwhile."""
    try:
        return nullcontext() if model == OURS else THEIRS[model]()
    except ModuleNotFoundError as error:
        pytest.skip(f"{model}: {error.name or error} is not installed; docs/peers.md says how")


@pytest.mark.benchmark(group="prefill")
@pytest.mark.parametrize("model", LONGEST)
@pytest.mark.parametrize("tokens", [1024, 8192, 32768, 131072])
@torch.inference_mode()
def test_prefill(benchmark, models, tokens, model):
    if tokens > LONGEST[model]:
        pytest.skip(f"{model}: {TOO_LONG[model]}")
    token_ids, weights = random_tokens(models.ours.config, 1, tokens), matrix_weights(models.ours)
    held_to = {}
    if model != OURS:
        expected = models.logits(tokens, lambda: prefill(models.ours, token_ids))
        held_to = {"error": lambda logits: relative_error(logits, expected), "error_budget": ERROR}
    with running(model):
        call = partial(prefill, models.of(model), token_ids)
        peak = cuda.memory(call, DEVICE)["peak_bytes"].worst
        benchmark.declare(
            tokens=tokens,
            bytes=weights * DTYPE.itemsize,
            flops=model_flops(CONFIG, weights, tokens),
            device=DEVICE,
            asked=model,
            info={"peak_bytes": peak},
            **held_to,
        )
        # What needs a setup is not called again for its launches and registers: some calls take seconds.
        logits = benchmark.pedantic(call, setup=lambda: ((), {}), rounds=3 if tokens < SECONDS else 1)
    if model == OURS:
        models.logits(tokens, lambda: logits)


@pytest.mark.benchmark(group="decode")
@pytest.mark.parametrize("model", LONGEST)
@pytest.mark.parametrize("batch", [1, 16])
@torch.inference_mode()
def test_decode(benchmark, models, batch, model):
    token_ids = random_tokens(models.ours.config, batch, HELD + 1)
    weights = matrix_weights(models.ours) + models.ours.lm_head.weight.numel()
    cache = models.ours.new_cache(batch=batch, max_len=HELD + ROOM)
    expected = models.logits(("decode", batch), decode(models.ours, token_ids, room=ROOM))
    step = decode(models.of(model), token_ids, room=ROOM)
    with running(model), without_plans():
        # Each call appends a token, so only the first result has a known truth.
        error = relative_error(step(), expected)
        benchmark.declare(
            tokens=batch,
            bytes=decode_bytes(models.ours, cache, HELD),
            flops=2 * weights * batch,
            device=DEVICE,
            error=lambda _: error,
            error_budget=ERROR,
            asked=model,
        )
        benchmark.pedantic(step, rounds=10)
