"""Transformers' families, four layers 2048 wide, on their torch forms and patched: a prompt, and a token after it."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kernelgate import cuda
from ssd_kernels import patch_transformers
from tests.perf.problems import DEVICE, DTYPE, MODEL_ERROR, ON_GPU, relative_error
from tests.study.model_peers import without_plans

pytestmark = [
    pytest.mark.study,
    pytest.mark.skipif(not ON_GPU, reason="compares times of a GPU"),
    pytest.mark.filterwarnings("ignore"),  # transformers' own
]

TOKENS = 2048
HEAD = {"vocab_size": 32000, "hidden_size": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = {
    "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 64, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1,
    "mamba_chunk_size": 256,
}  # fmt: skip
FAMILIES = {
    "mamba2": {
        "num_hidden_layers": 4, "num_heads": 64, "head_dim": 64, "state_size": 128, "n_groups": 1, "chunk_size": 256,
    },
    "bamba": {**ATTENTION, **MAMBA, "attn_layer_indices": [2]},
    "granitemoehybrid": {
        **ATTENTION, **MAMBA, "layer_types": ["mamba", "mamba", "attention", "mamba"], "intermediate_size": 1024,
        "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024,
    },
    "zamba2": {
        **ATTENTION, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"], "num_key_value_heads": 32,
        "mamba_d_state": 64, "mamba_ngroups": 1, "n_mamba_heads": 64, "mamba_expand": 2, "chunk_size": 256,
        "num_mem_blocks": 1, "adapter_rank": 128,
    },
    "falcon_h1": {**ATTENTION, **MAMBA, "mamba_d_ssm": 4096},
    "nemotron_h": {
        **ATTENTION, "layers_block_type": ["mamba", "mlp", "attention", "mamba"], "head_dim": 64,
        "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "chunk_size": 256,
    },
}  # fmt: skip
RUNS = {"transformers": nullcontext, "transformers, patched": patch_transformers}


@functools.lru_cache(maxsize=1)
def model_of(family):
    torch.manual_seed(0)
    with torch.device(DEVICE):
        config = AutoConfig.for_model(family, **HEAD, **FAMILIES[family])
        return AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()


def prompt():
    """(1, TOKENS + 1) ids, none of which is padding or an end."""
    return torch.arange(TOKENS + 1, device=DEVICE)[None] * 7 % 30000 + 3


def cache_name(family):
    return "cache_params" if family == "mamba2" else "past_key_values"


@functools.lru_cache(maxsize=1)
def first(family):
    """The logits of the prompt's last token by the torch forms, and the cache after it."""
    out = model_of(family)(prompt()[:, :TOKENS], use_cache=True)
    return out.logits[:, -1], out[cache_name(family)]


def measure(benchmark, family, model, call, expected, *, rounds, peak=False):
    """Both round to bf16 on the way, so that they differ by twice what either may be off."""
    with RUNS[model]():
        error = relative_error(call().logits[:, -1], expected.double())
        info = {"peak_bytes": cuda.memory(call, DEVICE)["peak_bytes"].worst} if peak else {}
        benchmark.declare(
            device=DEVICE, error=lambda _: error, error_budget=2 * MODEL_ERROR, asked=f"{family}, {model}", info=info
        )
        benchmark.pedantic(call, setup=lambda: ((), {}), rounds=rounds)


@pytest.mark.benchmark(group="families prefill")
@pytest.mark.parametrize("model", RUNS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_prefill(benchmark, family, model):
    theirs, token_ids = model_of(family), prompt()[:, :TOKENS]
    expected = first(family)[0]
    measure(benchmark, family, model, lambda: theirs(token_ids, use_cache=True), expected, rounds=3, peak=True)


@pytest.mark.benchmark(group="families decode")
@pytest.mark.parametrize("model", RUNS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_decode(benchmark, family, model):
    """Each call appends a token, so only the first result of a cache's copy has a known truth."""
    theirs, last, name = model_of(family), prompt()[:, TOKENS:], cache_name(family)
    expected = theirs(last, use_cache=True, **{name: copy.deepcopy(first(family)[1])}).logits[:, -1]
    cache = copy.deepcopy(first(family)[1])
    with without_plans():
        measure(benchmark, family, model, lambda: theirs(last, use_cache=True, **{name: cache}), expected, rounds=50)
