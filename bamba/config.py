"""What a Bamba model is made of: one frozen configuration, its derived widths, and the named presets.

Architecture: https://huggingface.co/blog/bamba; Mamba-2: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class BambaConfig:
    """The shape and the constants of a Bamba model; widths are in elements.

    Fields that begin with `attn_` belong to the attention layers, with `ssm_` to the Mamba-2 layers; every other layer
    than those in `attn_layers` is a Mamba-2 layer.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: sizes that are not positive or do not fit each other.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    d_mlp: int

    attn_layers: tuple[int, ...]
    attn_nheads: int
    attn_nheads_kv: int
    attn_headdim: int
    attn_rotary_dim: int  # the first elements of a head that are rotated
    attn_rope_theta: float

    ssm_nheads: int
    ssm_headdim: int
    ssm_ngroups: int
    ssm_d_state: int
    ssm_d_conv: int
    ssm_chunk_size: int
    ssm_norm_groups: int  # the gated norm normalises d_inner in this many equal parts

    attn_bias: bool = False
    mlp_bias: bool = False
    ssm_conv_bias: bool = True
    ssm_proj_bias: bool = False
    ssm_dt_limit: tuple[float, float] = (0.0, math.inf)
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                _expect_positive_int(field.name, value)
            elif field.type is bool and not isinstance(value, bool):
                raise TypeError(f"{field.name} must be a bool, got {value!r}")
            elif field.type is float and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"{field.name} must be a positive finite number, got {value!r}")
        self._expect_divides("attn_nheads_kv", "attn_nheads")
        self._expect_divides("ssm_ngroups", "ssm_nheads")
        self._expect_divides("ssm_norm_groups", "ssm_d_inner")
        if self.attn_rotary_dim % 2 or self.attn_rotary_dim > self.attn_headdim:
            raise ValueError(
                f"attn_rotary_dim must be even and at most attn_headdim {self.attn_headdim}, got {self.attn_rotary_dim}"
            )
        outside = [layer for layer in self.attn_layers if layer not in range(self.num_layers)]
        if outside or list(self.attn_layers) != sorted(set(self.attn_layers)):
            raise ValueError(
                f"attn_layers must be ascending, distinct and in [0, {self.num_layers}), got {self.attn_layers}"
            )
        if len(self.ssm_dt_limit) != 2 or not 0 <= self.ssm_dt_limit[0] < self.ssm_dt_limit[1]:
            raise ValueError(f"ssm_dt_limit must be (low, high) with 0 <= low < high, got {self.ssm_dt_limit}")

    @property
    def ssm_d_inner(self) -> int:
        """Width of x, z and y: all heads of the Mamba-2 mixer."""
        return self.ssm_nheads * self.ssm_headdim

    @property
    def ssm_conv_dim(self) -> int:
        """Channels of the causal convolution: x, B and C."""
        return self.ssm_d_inner + 2 * self.ssm_ngroups * self.ssm_d_state

    @property
    def ssm_d_in_proj(self) -> int:
        """Width of the mixer's input projection: z, then x, B and C, then dt."""
        return self.ssm_d_inner + self.ssm_conv_dim + self.ssm_nheads

    @classmethod
    def preset(cls, name: str) -> "BambaConfig":
        """The preset of this name; :data:`PRESETS` lists them.

        Raises:
            ValueError: there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"name must be one of {tuple(PRESETS)}, got {name!r}")
        return PRESETS[name]

    @classmethod
    def from_transformers(cls, hf_config: Any) -> "BambaConfig":
        """The configuration that computes what `transformers` computes for its `BambaConfig`.

        Raises:
            NotImplementedError: a setting that changes the computation in a way this model does not support.
        """
        from bamba.huggingface import config_from_transformers

        return config_from_transformers(hf_config)

    def to_transformers(self, **fields: Any) -> Any:
        """The `transformers.BambaConfig` that computes the same; `fields` are set in it besides.

        Special tokens are None in it unless `fields` name them.

        Raises:
            NotImplementedError: a setting that transformers cannot express.
        """
        from transformers import BambaConfig as TransformersConfig

        from bamba.huggingface import config_to_transformers

        return TransformersConfig(**config_to_transformers(self) | fields)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def _expect_divides(self, divisor: str, dividend: str) -> None:
        if getattr(self, dividend) % getattr(self, divisor):
            raise ValueError(
                f"{divisor} must divide {dividend} {getattr(self, dividend)}, got {getattr(self, divisor)}"
            )


def _expect_positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


_BAMBA_9B = BambaConfig(
    vocab_size=128256,
    num_layers=32,
    d_model=4096,
    d_mlp=14336,
    attn_layers=(9, 18, 27),
    attn_nheads=32,
    attn_nheads_kv=8,
    attn_headdim=128,
    attn_rotary_dim=64,
    attn_rope_theta=10_000.0,
    ssm_nheads=128,
    ssm_headdim=64,
    ssm_ngroups=1,
    ssm_d_state=128,
    ssm_d_conv=4,
    ssm_chunk_size=256,
    ssm_norm_groups=1,
)

PRESETS = {
    "tiny": BambaConfig(
        vocab_size=256,
        num_layers=4,
        d_model=64,
        d_mlp=128,
        attn_layers=(2,),
        attn_nheads=4,
        attn_nheads_kv=2,
        attn_headdim=16,
        attn_rotary_dim=8,
        attn_rope_theta=10_000.0,
        ssm_nheads=8,
        ssm_headdim=16,
        ssm_ngroups=2,
        ssm_d_state=16,
        ssm_d_conv=4,
        ssm_chunk_size=16,
        ssm_norm_groups=2,
    ),
    "bamba-9b": _BAMBA_9B,
    # Full width, few layers: what a kernel changes shows, and it fits any GPU that is worth measuring on.
    "bamba-9b-perf": _BAMBA_9B.replace(num_layers=4, attn_layers=(2,)),
}
