"""Small models of transformers' families: of one configuration each, and with mixers of drawn sizes."""

import random

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.correctness.problems import DEVICE

VOCABULARY = 64
HEAD = {"vocab_size": VOCABULARY, "hidden_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2, "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
# Two layers of each family: one of them attention, where the family has any.
SMALL = {
    "mamba2": {
        "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 8, "num_hidden_layers": 2,
    },
    "bamba": {**ATTENTION, **MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **ATTENTION, **MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "zamba2": {
        "num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"], "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 96, "mamba_d_state": 16, "mamba_ngroups": 2,
        "n_mamba_heads": 8, "mamba_expand": 2, "chunk_size": 8, "num_mem_blocks": 1, "adapter_rank": 4,
    },
    "falcon_h1": {**ATTENTION, **MAMBA, "mamba_d_ssm": 128},
    "nemotron_h": {
        **ATTENTION, "layers_block_type": ["mamba", "attention"], "head_dim": 16, "mamba_num_heads": 8,
        "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 8,
    },
}  # fmt: skip
# What a mixer's sizes are called: heads, their width, groups, width of the state, tokens in a chunk, taps, whether the
# convolution has a bias. Zamba2's width of a head follows from the others.
_OF_MAMBA2 = ("num_heads", "head_dim", "n_groups", "state_size", "chunk_size", "conv_kernel", "use_conv_bias")
_OF_BAMBA = (
    "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_chunk_size", "mamba_d_conv",
    "mamba_conv_bias",
)  # fmt: skip
SIZES = {
    "mamba2": _OF_MAMBA2,
    "bamba": _OF_BAMBA,
    "granitemoehybrid": _OF_BAMBA,
    "zamba2": (
        "n_mamba_heads", None, "mamba_ngroups", "mamba_d_state", "chunk_size", "mamba_d_conv", "use_conv_bias",
    ),
    "falcon_h1": _OF_BAMBA,
    "nemotron_h": ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", *_OF_MAMBA2[4:]),
}  # fmt: skip


def small_model(family: str, **fields: object) -> nn.Module:
    """Of a configuration with other fields changed; weights seeded, those that start alike made unlike."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**HEAD, **SMALL[family], **fields})
    # Experts one by one: their grouped product has no fp64.
    options = {"experts_implementation": "eager"} if hasattr(config, "num_local_experts") else {}
    model = AutoModelForCausalLM.from_config(config, **options).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.uniform_(-2, 2)
            elif name.endswith(("dt_bias", "mixer.D", "mamba.D")) or ".norm" in name:
                weight.normal_()
    return model.to(DEVICE)


def drawn_sizes(family: str, seed: int) -> dict[str, int | bool]:
    """Sizes of a mixer that is twice as wide as the model, as its configuration calls them."""
    choose = random.Random(seed).choice
    heads = choose([4, 8, 16])
    sizes = (
        heads, 128 // heads, choose([1, 2, 4]), choose([8, 16, 24]), choose([4, 16, 32]), choose([2, 3, 4]),
        choose([True, False]),
    )  # fmt: skip
    return {name: size for name, size in zip(SIZES[family], sizes, strict=True) if name is not None}
