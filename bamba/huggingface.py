"""How a `transformers.BambaConfig` reads as ours, and ours as that.

Every field of it is mapped, irrelevant to the logits, or refused. Reference: `transformers.models.bamba`, versions 5.17
to 5.23. Nothing here imports transformers.
"""

import math
from collections.abc import Mapping
from typing import Any

from bamba.config import BambaConfig

# Fields whose value enters the configuration.
MAPPED = frozenset(
    {
        "vocab_size",
        "tie_word_embeddings",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "initializer_range",
        "rms_norm_eps",
        "attn_layer_indices",
        "mamba_n_heads",
        "mamba_d_head",
        "mamba_n_groups",
        "mamba_d_state",
        "mamba_d_conv",
        "mamba_expand",
        "mamba_chunk_size",
        "mamba_conv_bias",
        "mamba_proj_bias",
        "time_step_limit",
        "rope_parameters",
        "attention_bias",
        "mlp_bias",
    }
)

# Fields that are refused unless they have the one value this model computes.
REFUSED_UNLESS: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
}

# Fields that do not touch the logits, and why.
IRRELEVANT: Mapping[str, str] = {
    "transformers_version": "bookkeeping",
    "architectures": "bookkeeping",
    "output_hidden_states": "what transformers returns beside the logits",
    "return_dict": "how transformers returns",
    "dtype": "an argument of the model, not of its configuration",
    "id2label": "classification heads",
    "label2id": "classification heads",
    "problem_type": "classification heads",
    "use_cache": "an argument of the forward",
    "num_logits_to_keep": "an argument of the forward",
    "pad_token_id": "text handling; transformers only withholds the gradient of this embedding row",
    "bos_token_id": "text handling",
    "eos_token_id": "text handling",
    "max_position_embeddings": "read by scaled rotary embeddings only, which are refused",
    "z_loss_coefficient": "a term of transformers' training loss; this model returns logits",
}

_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def config_from_transformers(hf_config: Any) -> BambaConfig:
    """Read a `transformers.BambaConfig`; see :meth:`BambaConfig.from_transformers`."""
    for name, only_value in REFUSED_UNLESS.items():
        if getattr(hf_config, name, only_value) != only_value:
            raise NotImplementedError(f"{name} must be {only_value!r}, got {getattr(hf_config, name)!r}")
    if getattr(hf_config, "is_heterogeneous", False):
        raise NotImplementedError("per_layer_config must be empty: layers of differing sizes are not supported")
    if hf_config.time_step_limit is None:
        raise NotImplementedError("time_step_limit must be (low, high), got None")
    d_inner = int(hf_config.mamba_expand * hf_config.hidden_size)
    if d_inner != hf_config.mamba_n_heads * hf_config.mamba_d_head:
        raise NotImplementedError(
            f"mamba_expand * hidden_size must be mamba_n_heads * mamba_d_head, "
            f"got {d_inner} and {hf_config.mamba_n_heads} * {hf_config.mamba_d_head}"
        )
    # transformers honours a head_dim that is set, though it is no field of its configuration.
    attn_headdim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads
    rope_theta, rotary_fraction = _read_rope(hf_config)
    return BambaConfig(
        vocab_size=hf_config.vocab_size,
        num_layers=hf_config.num_hidden_layers,
        d_model=hf_config.hidden_size,
        d_mlp=hf_config.intermediate_size,
        attn_layers=tuple(sorted(hf_config.attn_layer_indices or ())),
        attn_nheads=hf_config.num_attention_heads,
        attn_nheads_kv=hf_config.num_key_value_heads,
        attn_headdim=attn_headdim,
        attn_rotary_dim=int(attn_headdim * rotary_fraction),
        attn_rope_theta=rope_theta,
        attn_bias=hf_config.attention_bias,
        mlp_bias=hf_config.mlp_bias,
        ssm_nheads=hf_config.mamba_n_heads,
        ssm_headdim=hf_config.mamba_d_head,
        ssm_ngroups=hf_config.mamba_n_groups,
        ssm_d_state=hf_config.mamba_d_state,
        ssm_d_conv=hf_config.mamba_d_conv,
        ssm_chunk_size=hf_config.mamba_chunk_size,
        # As mamba-ssm trains and transformers 5.23 computes; transformers 5.17 normalised over all of d_inner at once.
        ssm_norm_groups=hf_config.mamba_n_groups,
        ssm_conv_bias=hf_config.mamba_conv_bias,
        ssm_proj_bias=hf_config.mamba_proj_bias,
        ssm_dt_limit=tuple(hf_config.time_step_limit),
        norm_eps=hf_config.rms_norm_eps,
        tie_embeddings=hf_config.tie_word_embeddings,
        initializer_range=hf_config.initializer_range,
    )


def config_to_transformers(config: BambaConfig) -> dict[str, Any]:
    """The fields of the `transformers.BambaConfig` that computes the same; see :meth:`BambaConfig.to_transformers`."""
    if config.ssm_norm_groups != config.ssm_ngroups:
        raise NotImplementedError(
            f"ssm_norm_groups must be ssm_ngroups {config.ssm_ngroups}, which transformers has one field for, "
            f"got {config.ssm_norm_groups}"
        )
    if config.ssm_d_inner % config.d_model:
        raise NotImplementedError(
            f"ssm_nheads * ssm_headdim must be a multiple of d_model {config.d_model}, as transformers' mamba_expand "
            f"is a whole number, got {config.ssm_d_inner}"
        )
    return {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.attn_nheads,
        "num_key_value_heads": config.attn_nheads_kv,
        "head_dim": config.attn_headdim,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_eps,
        "attn_layer_indices": list(config.attn_layers),
        "mamba_n_heads": config.ssm_nheads,
        "mamba_d_head": config.ssm_headdim,
        "mamba_n_groups": config.ssm_ngroups,
        "mamba_d_state": config.ssm_d_state,
        "mamba_d_conv": config.ssm_d_conv,
        "mamba_expand": config.ssm_d_inner // config.d_model,
        "mamba_chunk_size": config.ssm_chunk_size,
        "mamba_conv_bias": config.ssm_conv_bias,
        "mamba_proj_bias": config.ssm_proj_bias,
        "time_step_limit": tuple(config.ssm_dt_limit),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.attn_rope_theta,
            "partial_rotary_factor": _rotary_fraction(config),
        },
        "attention_bias": config.attn_bias,
        "mlp_bias": config.mlp_bias,
        # Which tokens these are is for the tokenizer's side to say; transformers would take 0, 1 and 2.
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _rotary_fraction(config: BambaConfig) -> float:
    """The fraction of a head whose product with its width rounds down to the rotated elements."""
    fraction = config.attn_rotary_dim / config.attn_headdim
    if int(config.attn_headdim * fraction) < config.attn_rotary_dim:
        fraction = math.nextafter(fraction, 1.0)
    return fraction


def _read_rope(hf_config: Any) -> tuple[float, float]:
    """Theta and the rotated fraction of a head."""
    rope = getattr(hf_config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default" or set(rope) - _ROPE_KEYS:
        raise NotImplementedError(f"rope_parameters: only unscaled rotary embeddings are supported, got {dict(rope)}")
    theta = rope.get("rope_theta", getattr(hf_config, "rope_theta", 10_000.0))
    fraction = rope.get("partial_rotary_factor", getattr(hf_config, "partial_rotary_factor", 0.5))
    return float(theta), float(fraction)
