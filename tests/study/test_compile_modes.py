"""The prior study's matrix of compile modes: prefill and decode of a model with four layers of Bamba-9B's shapes."""

import pytest
import torch
from torch._inductor.utils import fresh_cache

from tests.perf.model_calls import random_tokens
from tests.perf.problems import DEVICE, DTYPE, MODEL_ERROR, ON_GPU, model_flops, relative_error, with_exact_twin
from tests.study.compiling import EAGER, MODES, OURS, POSITION, prepare_decode, prepare_prefill
from tests.study.whole_model import DEPTHS, sharing, step_bytes, weight_bytes

pytestmark = [
    pytest.mark.study,
    pytest.mark.benchmark(group="compile"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]

CONFIG = DEPTHS[4]
TOKENS = 1024 if ON_GPU else 64


@pytest.fixture(scope="module")
def models():
    return with_exact_twin(CONFIG)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", ["prefill", "decode"])
def test_compile_modes(benchmark, models, call, mode):
    if mode == OURS and not ON_GPU:
        pytest.skip("captures CUDA graphs")
    prepare = prepare_prefill if call == "prefill" else prepare_decode
    model, exact_model = sharing(models[0]), models[1]
    token_ids = random_tokens(CONFIG, 1, TOKENS if call == "prefill" else POSITION + 1)
    with torch.inference_mode(), fresh_cache():
        exact = exact_model(token_ids, logits_to_keep=1)
        prepare(models[0], EAGER, token_ids)  # our kernels are there when the compiler starts
        prepared = prepare(model, mode, token_ids)
        error = relative_error(prepared.first, exact)
        matrices = weight_bytes(model) // DTYPE.itemsize
        prefill_flops = model_flops(CONFIG, matrices - model.lm_head.weight.numel(), TOKENS)
        cache = model.new_cache(batch=1, max_len=POSITION + 1)
        benchmark.declare(
            tokens=TOKENS if call == "prefill" else 1,
            bytes=weight_bytes(model) if call == "prefill" else step_bytes(model, cache, POSITION),
            flops=prefill_flops if call == "prefill" else 2 * matrices,
            device=DEVICE,
            error=lambda _: error,
            error_budget=MODEL_ERROR,
            asked=mode,
            ran=model.ssm_in_use,
            info={
                "ready_s": prepared.ready_s,
                "graph_breaks": prepared.graph_breaks,
                "recompiles": prepared.recompiles,
            },
        )
        benchmark(prepared.call)
    assert mode in (EAGER, OURS) or (prepared.graph_breaks, prepared.recompiles) == (0, 0)
