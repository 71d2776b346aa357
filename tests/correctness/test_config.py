import dataclasses
import math

import pytest
from transformers import BambaConfig as TransformersConfig

from bamba import PRESETS, BambaConfig
from bamba.huggingface import IRRELEVANT, MAPPED, REFUSED_UNLESS

pytestmark = pytest.mark.correctness

TINY = BambaConfig.preset("tiny")

# The configuration published with the Bamba-9B checkpoints, where it differs from transformers' defaults.
BAMBA_9B = {
    "vocab_size": 128256,
    "attn_layer_indices": [9, 18, 27],
    "mamba_d_state": 128,
    "pad_token_id": 0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

# For each mapped field, another legal value (with what must change along) and the fields of ours that follow it.
CHANGES = {
    "vocab_size": ({"vocab_size": 500}, {"vocab_size": 500}),
    "tie_word_embeddings": ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
    "hidden_size": (
        {"hidden_size": 2048, "mamba_n_heads": 64},
        {"d_model": 2048, "ssm_nheads": 64, "attn_headdim": 64, "attn_rotary_dim": 32},
    ),
    "intermediate_size": ({"intermediate_size": 100}, {"d_mlp": 100}),
    "num_hidden_layers": ({"num_hidden_layers": 30}, {"num_layers": 30}),
    "num_attention_heads": (
        {"num_attention_heads": 16},
        {"attn_nheads": 16, "attn_headdim": 256, "attn_rotary_dim": 128},
    ),
    "num_key_value_heads": ({"num_key_value_heads": None}, {"attn_nheads_kv": 32}),
    "initializer_range": ({"initializer_range": 0.5}, {"initializer_range": 0.5}),
    "rms_norm_eps": ({"rms_norm_eps": 1e-6}, {"norm_eps": 1e-6}),
    "attn_layer_indices": ({"attn_layer_indices": None}, {"attn_layers": ()}),
    "mamba_n_heads": ({"mamba_n_heads": 64, "mamba_expand": 1}, {"ssm_nheads": 64}),
    "mamba_d_head": ({"mamba_d_head": 32, "mamba_n_heads": 256}, {"ssm_headdim": 32, "ssm_nheads": 256}),
    "mamba_n_groups": ({"mamba_n_groups": 4}, {"ssm_ngroups": 4, "ssm_norm_groups": 4}),
    "mamba_d_state": ({"mamba_d_state": 64}, {"ssm_d_state": 64}),
    "mamba_d_conv": ({"mamba_d_conv": 3}, {"ssm_d_conv": 3}),
    "mamba_expand": ({"mamba_expand": 4, "mamba_d_head": "auto"}, {"ssm_headdim": 128}),
    "mamba_chunk_size": ({"mamba_chunk_size": 64}, {"ssm_chunk_size": 64}),
    "mamba_conv_bias": ({"mamba_conv_bias": False}, {"ssm_conv_bias": False}),
    "mamba_proj_bias": ({"mamba_proj_bias": True}, {"ssm_proj_bias": True}),
    "time_step_limit": ({"time_step_limit": (0.1, 0.2)}, {"ssm_dt_limit": (0.1, 0.2)}),
    "rope_parameters": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.25}},
        {"attn_rope_theta": 5e5, "attn_rotary_dim": 32},
    ),
    "attention_bias": ({"attention_bias": True}, {"attn_bias": True}),
    "mlp_bias": ({"mlp_bias": True}, {"mlp_bias": True}),
}


def test_every_field_of_transformers_is_mapped_irrelevant_or_refused_and_only_one_of_these():
    tables = [set(MAPPED), set(IRRELEVANT), set(REFUSED_UNLESS)]
    declared = set().union(*tables)
    assert sum(map(len, tables)) == len(declared)
    assert {field.name for field in dataclasses.fields(TransformersConfig)} <= declared


def test_the_published_9b_configuration_reads_as_the_preset():
    assert BambaConfig.from_transformers(TransformersConfig(**BAMBA_9B)) == BambaConfig.preset("bamba-9b")


def test_every_mapped_field_has_a_change_to_test():
    assert set(CHANGES) == MAPPED


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_a_mapped_field_changes_ours_as_declared_and_nothing_else(field):
    change, expected = CHANGES[field]
    hf_config = TransformersConfig(**BAMBA_9B | change)
    assert BambaConfig.from_transformers(hf_config) == BambaConfig.preset("bamba-9b").replace(**expected)


def test_a_head_dim_that_transformers_honours_is_honoured():
    config = BambaConfig.from_transformers(TransformersConfig(**BAMBA_9B, head_dim=64))
    assert (config.attn_headdim, config.attn_rotary_dim) == (64, 32)


def test_an_old_style_rope_theta_is_read():
    assert BambaConfig.from_transformers(TransformersConfig(**BAMBA_9B, rope_theta=77.0)).attn_rope_theta == 77.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout must be 0.0, got 0.1"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder must be False"),
        ({"chunk_size_feed_forward": 64}, "chunk_size_feed_forward must be 0, got 64"),
        ({"time_step_limit": None}, "time_step_limit must be .*, got None"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters: .*'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters: .*'yarn'"),
        ({"per_layer_config": {0: {"rms_norm_eps": 1e-3}}}, "per_layer_config"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, match):
    with pytest.raises(NotImplementedError, match=match):
        BambaConfig.from_transformers(TransformersConfig(**BAMBA_9B | change))


def test_every_refused_field_is_tested():
    assert set(REFUSED_UNLESS) == {"hidden_act", "attention_dropout", "is_encoder_decoder", "chunk_size_feed_forward"}


def test_attention_layers_outside_the_model_are_refused_where_transformers_drops_them():
    with pytest.raises(ValueError, match=r"attn_layers must be .* in \[0, 4\), got \(9, 18, 27\)"):
        BambaConfig.from_transformers(TransformersConfig(**BAMBA_9B | {"num_hidden_layers": 4}))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"d_model": 64.0}, TypeError, r"d_model must be an int, got 64\.0"),
        ({"vocab_size": True}, TypeError, "vocab_size must be an int, got True"),
        ({"mlp_bias": 1}, TypeError, "mlp_bias must be a bool, got 1"),
        ({"norm_eps": 0.0}, ValueError, "norm_eps must be a positive finite number"),
        ({"attn_rope_theta": math.inf}, ValueError, "attn_rope_theta must be a positive finite number"),
        ({"attn_nheads_kv": 3}, ValueError, "attn_nheads_kv must divide attn_nheads 4, got 3"),
        ({"ssm_ngroups": 3}, ValueError, "ssm_ngroups must divide ssm_nheads 8, got 3"),
        ({"ssm_norm_groups": 3}, ValueError, "ssm_norm_groups must divide ssm_d_inner 128, got 3"),
        ({"attn_rotary_dim": 7}, ValueError, "attn_rotary_dim must be even .* 16, got 7"),
        ({"attn_rotary_dim": 32}, ValueError, "attn_rotary_dim must be .* at most attn_headdim 16, got 32"),
        ({"attn_layers": (4,)}, ValueError, r"attn_layers .* \[0, 4\), got \(4,\)"),
        ({"attn_layers": (2, 1)}, ValueError, r"attn_layers must be ascending, .* got \(2, 1\)"),
        ({"ssm_dt_limit": (0.2, 0.1)}, ValueError, r"ssm_dt_limit must be \(low, high\) .* got \(0.2, 0.1\)"),
        ({"ssm_dt_limit": (0.2,)}, ValueError, r"ssm_dt_limit must be \(low, high\) .* got \(0.2,\)"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_what_was_expected_and_found(change, error, match):
    with pytest.raises(error, match=match):
        TINY.replace(**change)


def test_unknown_presets_are_listed_against_the_known():
    with pytest.raises(ValueError, match=r"'tiny', 'bamba-9b', 'bamba-9b-perf'.*got 'bamba'"):
        BambaConfig.preset("bamba")


def test_every_preset_has_attention_and_mamba_layers():
    for config in PRESETS.values():
        assert 0 < len(config.attn_layers) < config.num_layers


def test_the_perf_preset_is_the_9b_one_with_four_layers_of_which_one_attends():
    perf = BambaConfig.preset("bamba-9b-perf")
    assert (perf.num_layers, len(perf.attn_layers)) == (4, 1)
    assert perf.replace(num_layers=32, attn_layers=(9, 18, 27)) == BambaConfig.preset("bamba-9b")


def test_derived_widths_of_the_9b_preset():
    config = BambaConfig.preset("bamba-9b")
    assert (config.ssm_d_inner, config.ssm_conv_dim, config.ssm_d_in_proj) == (8192, 8448, 16768)


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_a_configuration_goes_to_transformers_and_back(field):
    config = BambaConfig.from_transformers(TransformersConfig(**BAMBA_9B | CHANGES[field][0]))
    assert BambaConfig.from_transformers(config.to_transformers()) == config


@pytest.mark.parametrize(("headdim", "rotary_dim"), [(44, 30), (45, 26), (47, 6), (64, 64)])
def test_a_rotated_part_that_is_no_exact_fraction_of_a_head_survives_the_way_back(headdim, rotary_dim):
    config = TINY.replace(attn_headdim=headdim, attn_rotary_dim=rotary_dim)
    assert BambaConfig.from_transformers(config.to_transformers()) == config


def test_to_transformers_takes_further_fields_and_leaves_special_tokens_out():
    plain, further = TINY.to_transformers(), TINY.to_transformers(eos_token_id=7)
    assert (plain.eos_token_id, plain.bos_token_id, plain.pad_token_id) == (None, None, None)
    assert (further.eos_token_id, further.bos_token_id) == (7, None)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ssm_norm_groups": 1}, "ssm_norm_groups must be ssm_ngroups 2, .* got 1"),
        ({"d_model": 48}, "must be a multiple of d_model 48, .* got 128"),
    ],
)
def test_what_transformers_cannot_express_is_refused_by_name(change, match):
    with pytest.raises(NotImplementedError, match=match):
        TINY.replace(**change).to_transformers()
