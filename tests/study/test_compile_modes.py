"""The prior study's matrix of compile modes: prefill and decode of a model with four layers of Bamba-9B's shapes.

Of all 32 layers the default alone, beside what it competes with: the compiler takes layer after layer, so that its time
grows with them. The first row of a depth loads our kernels and the compiler; what `ready` says is neither's.
"""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from bamba import Bamba
from tests.perf.model_calls import random_tokens
from tests.perf.problems import DEVICE, DTYPE, MODEL_ERROR, ON_GPU, model_flops, relative_error, with_exact_twin
from tests.study.compiling import EAGER, MODES, OURS, POSITION, prepare_decode, prepare_prefill
from tests.study.whole_model import DEPTHS, sharing, step_bytes, weight_bytes

pytestmark = [
    pytest.mark.study,
    pytest.mark.benchmark(group="compile"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]

TOKENS = 1024 if ON_GPU else 64
LENGTHS = {"prefill": TOKENS, "decode": POSITION + 1}
PREPARE = {"prefill": prepare_prefill, "decode": prepare_decode}
SHALLOW = min(DEPTHS)
CELLS = [
    (layers, call, mode)
    for layers in DEPTHS
    for call in PREPARE
    for mode in (MODES if layers == SHALLOW else (EAGER, OURS, "default"))
]


@dataclass(frozen=True)
class Subject:
    """What is compiled, and by call the tokens and the exact logits of the last."""

    model: Bamba
    token_ids: dict[str, Tensor]
    exact: dict[str, Tensor]


@functools.lru_cache(maxsize=1)
def subject(layers):
    model, exact_model = with_exact_twin(DEPTHS[layers])
    token_ids = {call: random_tokens(model.config, 1, length) for call, length in LENGTHS.items()}
    exact = {call: exact_model(ids, logits_to_keep=1) for call, ids in token_ids.items()}
    for call, prepare in PREPARE.items():
        prepare(model, EAGER, token_ids[call])
    with fresh_cache():
        torch.compile(torch.neg)(torch.ones(8, device=DEVICE))  # starts the compiler's processes, which stay
    return Subject(model, token_ids, exact)


@pytest.mark.parametrize(("layers", "call", "mode"), CELLS)
@torch.inference_mode()
def test_compile_modes(benchmark, layers, call, mode):
    if mode == OURS and not ON_GPU:
        pytest.skip("captures CUDA graphs")
    of = subject(layers)
    model = sharing(of.model)
    with fresh_cache():
        prepared = PREPARE[call](model, mode, of.token_ids[call])
        error = relative_error(prepared.first, of.exact[call])
        matrices = weight_bytes(model) // DTYPE.itemsize
        prefill_flops = model_flops(model.config, matrices - model.lm_head.weight.numel(), TOKENS)
        cache = model.new_cache(batch=1, max_len=POSITION + 1)
        benchmark.declare(
            tokens=TOKENS if call == "prefill" else 1,
            bytes=weight_bytes(model) if call == "prefill" else step_bytes(model, cache, POSITION),
            flops=prefill_flops if call == "prefill" else 2 * matrices,
            device=DEVICE,
            error=lambda _: error,
            error_budget=MODEL_ERROR * (layers / SHALLOW) ** 0.5,
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
