"""Random small Bamba problems in transformers' terms: structure, weights that make every layer matter, the truth."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import BambaConfig as TransformersConfig, BambaForCausalLM
from transformers.models.bamba import modeling_bamba

from bamba import Bamba, BambaConfig

VOCAB_SIZE = 64

Logits = Callable[[BambaForCausalLM], Tensor]


@dataclass(frozen=True)
class Case:
    """One drawn problem."""

    hf_config: TransformersConfig
    batch: int
    seqlen: int
    prompt: int  # tokens prefilled before the rest is decoded, in [1, seqlen]
    seed: int

    @property
    def config(self) -> BambaConfig:
        config = BambaConfig.from_transformers(self.hf_config)
        if "group_size" in inspect.signature(modeling_bamba.BambaRMSNormGated.__init__).parameters:
            return config
        return config.replace(ssm_norm_groups=1)  # what transformers 5.17 computes

    @property
    def features(self) -> set[str]:
        """What this case exercises, for the tests to count."""
        config = self.config
        has = {
            "attention": bool(config.attn_layers),
            "grouped attention heads": bool(config.attn_layers) and config.attn_nheads_kv < config.attn_nheads,
            "mamba": len(config.attn_layers) < config.num_layers,
            "several SSM groups": config.ssm_ngroups > 1 and len(config.attn_layers) < config.num_layers,
            "several chunks": self.seqlen > config.ssm_chunk_size,
            "ragged last chunk": self.seqlen > config.ssm_chunk_size and self.seqlen % config.ssm_chunk_size > 0,
            "several sequences": self.batch > 1,
            "decode across a chunk": self.prompt // config.ssm_chunk_size < (self.seqlen - 1) // config.ssm_chunk_size,
            "clamped steps": config.ssm_dt_limit != (0.0, math.inf),
        }
        return {name for name, present in has.items() if present}

    def token_ids(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(VOCAB_SIZE, (self.batch, self.seqlen), generator=generator)

    def reference(self, dtype: torch.dtype = torch.float32) -> BambaForCausalLM:
        """Transformers' model with random weights; the same weights, rounded, in every dtype."""
        model = BambaForCausalLM(self.hf_config).eval()
        randomise(model, self.seed)
        return model.to(dtype)

    def ours(self, reference: BambaForCausalLM, dtype: torch.dtype = torch.float32, **options: str) -> Bamba:
        """Our model with the same weights."""
        model = Bamba(self.config, dtype=dtype, **options).eval()
        model.load_state_dict(reference.state_dict(), strict=True)
        return model


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_layers = draw(st.integers(2, 4))
    attn_layers = draw(st.sets(st.integers(0, num_layers - 1), min_size=1, max_size=num_layers))
    nheads_kv = draw(st.integers(1, 2))
    ngroups = draw(st.sampled_from([2, 1, 3]))
    nheads = ngroups * draw(st.integers(2, 4))
    headdim = draw(st.sampled_from([16, 32]))
    expand = draw(st.sampled_from([1, 2]))
    chunk_size = draw(st.sampled_from([4, 8, 16]))
    seqlen = draw(st.integers(1, 3 * chunk_size))
    hf_config = TransformersConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=nheads * headdim // expand,
        intermediate_size=draw(st.integers(16, 40)),
        num_hidden_layers=num_layers,
        attn_layer_indices=sorted(attn_layers),
        num_attention_heads=nheads_kv * draw(st.integers(1, 3)),
        num_key_value_heads=nheads_kv,
        head_dim=draw(st.sampled_from([4, 8])),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": draw(st.sampled_from([10_000.0, 100.0])),
            "partial_rotary_factor": draw(st.sampled_from([0.5, 1.0])),
        },
        mamba_n_heads=nheads,
        mamba_d_head=headdim,
        mamba_n_groups=ngroups,
        mamba_d_state=draw(st.sampled_from([4, 8])),
        mamba_d_conv=draw(st.integers(2, 4)),
        mamba_expand=expand,
        mamba_chunk_size=chunk_size,
        mamba_conv_bias=draw(st.booleans()),
        mamba_proj_bias=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        time_step_limit=draw(st.sampled_from([(0.0, math.inf), (0.05, 0.8)])),
        pad_token_id=None,
        use_cache=False,
    )
    return Case(
        hf_config=hf_config,
        batch=draw(st.integers(1, 3)),
        seqlen=seqlen,
        prompt=draw(st.integers(1, seqlen)),
        seed=draw(st.integers(0, 2**16)),
    )


def pad(sequences: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Token ids and mask of a padded batch; a token as padding, for it must not matter which."""
    longest = max(map(len, sequences))
    ids = torch.ones(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if side == "left" else slice(len(sequence))
        ids[row, place], mask[row, place] = sequence, 1
    return ids, mask


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter so that each layer moves the logits and every step and decay rate occurs."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.uniform_(math.log(0.25), math.log(8.0), generator=generator)
        elif name.endswith("dt_bias"):
            parameter.uniform_(-4.0, 1.0, generator=generator)
        elif name.endswith(("norm.weight", ".D")):
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif parameter.ndim == 1:
            parameter.uniform_(-0.5, 0.5, generator=generator)
        else:
            fan_in = math.prod(parameter.shape[1:])
            parameter.normal_(std=fan_in**-0.5, generator=generator)


class _Fp64Torch:
    """The torch module, except that what transformers computes in fp32 by name is computed in fp64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@contextmanager
def fp64_throughout() -> Iterator[None]:
    """Let an fp64 model of transformers compute in fp64; by itself it rounds norms, scan and rotary angles to fp32."""
    with (
        patch.object(modeling_bamba, "torch", _Fp64Torch()),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


@torch.inference_mode()
def true_logits(reference: BambaForCausalLM, token_ids: Tensor) -> Tensor:
    """Transformers' logits in fp64, from weights already rounded as `reference` holds them."""
    model = BambaForCausalLM(reference.config).eval()
    model.load_state_dict(reference.state_dict())
    with fp64_throughout():
        return model.double()(token_ids).logits


@torch.inference_mode()
def own_error(reference: BambaForCausalLM, logits: Logits, exact_logits: Logits, neighbours: int = 3) -> Tensor:
    """What `logits` loses against `exact_logits` on this model or a neighbour of it, whichever is the largest.

    A neighbour differs in the last bits of its weights only: it is as well conditioned and rounds afresh, so that one
    lucky rounding does not set the budget.
    """
    errors = [logits(reference).double() - exact_logits(reference)]
    for seed in range(neighbours):
        neighbour = BambaForCausalLM(reference.config).eval().to(reference.dtype)
        neighbour.load_state_dict(reference.state_dict())
        generator = torch.Generator().manual_seed(seed)
        for parameter in neighbour.parameters():
            noise = torch.rand(parameter.shape, generator=generator) - 0.5
            parameter.mul_(1 + 8 * torch.finfo(parameter.dtype).eps * noise)
        errors.append(logits(neighbour).double() - exact_logits(neighbour))
    return max(errors, key=lambda error: error.abs().max().item())
