"""The Bamba model: embedding, then blocks of norm → Mamba-2 mixer or attention → norm → MLP, then norm and logits.

Prefill and decode are the same forward; with a cache and one token, the recurrent operators take one step instead of
a scan. Parameter names are those of `transformers.BambaForCausalLM`, so its state dict loads as it is.
Sources: https://huggingface.co/blog/bamba; Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).
"""

from collections.abc import Callable
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bamba.cache import AttentionCache, Cache, LayerCache, SSMCache
from bamba.config import BambaConfig
from bamba.initialise import init_weights
from bamba.step import ssd_step
from ssd_kernels import SSD, get_ssd, ssd
from ssd_kernels.registry import default_name

_CARRIES = ("all", "none")


class Bamba(nn.Module):
    """The language model; a fresh one holds the random weights of `init_weights(seed=0)`.

    Args:
        config: what to build.
        ssm: the name of the SSD implementation in the registry of `ssd_kernels`; "auto" is the default of the device.
        carry: how state passes from chunk to chunk, "all" (exact) or "none" (independent chunks).
        device: where to build; the default device by default. On "meta", weights have shapes only.
        dtype: the dtype of weights and activations; the default dtype by default. A_log, D and dt_bias are kept in
            fp32 at least.

    Raises:
        NotImplementedError: a carry that the model cannot decode with.
        ValueError, RuntimeError: an implementation that the registry does not have, or that cannot run here.
    """

    def __init__(
        self,
        config: BambaConfig,
        *,
        ssm: str = "auto",
        carry: str = "all",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if carry not in _CARRIES:
            raise NotImplementedError(f"carry must be one of {_CARRIES}, got {carry!r}")
        self.config = config
        self.ssm = ssm
        self.carry = carry
        device = torch.get_default_device() if device is None else torch.device(device)
        dtype = dtype or torch.get_default_dtype()
        with torch.device("meta"):  # shapes first: no initialisation that is then overwritten, no second copy
            self.model = Backbone(config, ssd if ssm == "auto" else get_ssd(ssm), carry, dtype)
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False, dtype=dtype)
        self.to_empty(device=device)
        if device.type != "meta":
            self.init_weights(seed=0)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return self.model.embed_tokens.weight.dtype

    @property
    def ssm_in_use(self) -> str:
        """The registry name of the SSD implementation that runs: `ssm`, with "auto" resolved for the device."""
        return default_name(self.device.type) if self.ssm == "auto" else self.ssm

    def init_weights(self, seed: int) -> None:
        """Fill all weights at random, in place; the same seed, device and dtype give the same weights."""
        init_weights(self, self.config, seed)

    def new_cache(self, *, batch: int, max_len: int) -> Cache:
        """An empty cache on the model's device, in its dtype."""
        return Cache(self.config, batch=batch, max_len=max_len, device=self.device, dtype=self.dtype)

    def forward(self, token_ids: Tensor, cache: Cache | None = None, *, logits_to_keep: int | None = None) -> Tensor:
        """The logits of the token after each given one.

        Args:
            token_ids: (batch, seqlen), int64 or int32, each in [0, vocab_size).
            cache: memory to continue from and to write to; the tokens are a whole sequence without it.
            logits_to_keep: compute the logits of this many last tokens only; of all by default.

        Returns:
            (batch, seqlen or logits_to_keep, vocab_size), in the model's dtype.

        Raises:
            ValueError: a shape that does not fit, no tokens, or no room in the cache.
            TypeError: token ids that are not integers.
            NotImplementedError: several tokens on top of a cache that already holds some.
        """
        # Everything about the host is settled here; below this line shapes alone decide, so the backbone compiles.
        if token_ids.ndim != 2 or token_ids.shape[1] == 0:
            raise ValueError(f"token_ids must have shape (batch, seqlen), seqlen >= 1, got {tuple(token_ids.shape)}")
        if token_ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"token_ids: dtype must be int64 or int32, got {token_ids.dtype}")
        batch, seqlen = token_ids.shape
        if logits_to_keep is not None and not 1 <= logits_to_keep <= seqlen:
            raise ValueError(f"logits_to_keep must be in [1, seqlen {seqlen}], got {logits_to_keep}")
        if cache is not None:
            cache.expect_room(batch, seqlen)
        hidden = self.model(token_ids, cache)
        if cache is not None:
            cache.length += seqlen
        kept = seqlen if logits_to_keep is None else logits_to_keep
        return cast("Tensor", self.lm_head(hidden[:, seqlen - kept :]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the weights, and let what depends on them follow; every such call passes here."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it without types
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if self.ssm == "auto" and self.device.type != "meta":
            for module in self.modules():
                if isinstance(module, Mamba2):
                    module.ssd = get_ssd(self.ssm_in_use)
        return self


class Backbone(nn.Module):
    """Everything but the logits."""

    def __init__(self, config: BambaConfig, ssd: SSD, carry: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, dtype=dtype)
        self.layers = nn.ModuleList(Block(config, layer, ssd, carry, dtype) for layer in range(config.num_layers))
        self.final_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps, dtype=dtype)

    def forward(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states (batch, seqlen, d_model) of token ids (batch, seqlen)."""
        seqlen = token_ids.shape[1]
        hidden = self.embed_tokens(token_ids)
        # Several tokens begin a sequence, with or without a cache; one token with a cache stands where the cache ends.
        t = torch.arange(seqlen, device=token_ids.device) if cache is None or seqlen > 1 else cache.position
        positions = locate(t, self.config, hidden.dtype)
        for i, block in enumerate(self.layers):
            hidden = block(hidden, positions, None if cache is None else cache.layers[i])
        if cache is not None:
            cache.position.add_(seqlen)
        return cast("Tensor", self.final_layernorm(hidden))


class Positions(NamedTuple):
    """Where the tokens of one forward stand in their sequences, as every layer needs it."""

    t: Tensor  # (seqlen,) int64, counted from the start of the sequence
    cos: Tensor  # (seqlen, rotary_dim / 2)
    sin: Tensor  # as cos


class Block(nn.Module):
    """Norm → mixer or attention → residual, then norm → MLP → residual."""

    def __init__(self, config: BambaConfig, layer: int, ssd: SSD, carry: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_attention = layer in config.attn_layers
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps, dtype=dtype)
        if self.is_attention:
            self.self_attn = Attention(config, dtype)
        else:
            self.mamba = Mamba2(config, ssd, carry, dtype)
        self.pre_ff_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps, dtype=dtype)
        self.feed_forward = MLP(config, dtype)

    def forward(self, hidden: Tensor, positions: Positions, cache: LayerCache | None) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        mixer = self.self_attn if self.is_attention else self.mamba
        hidden = hidden + mixer(self.input_layernorm(hidden), positions, cache)
        return cast("Tensor", hidden + self.feed_forward(self.pre_ff_layernorm(hidden)))


class Mamba2(nn.Module):
    """The Mamba-2 mixer: in_proj → causal convolution of x, B, C → SSD → gated norm → out_proj."""

    def __init__(self, config: BambaConfig, ssd: SSD, carry: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.ssd = ssd
        self.carry = carry
        d_inner, conv_dim, nheads = config.ssm_d_inner, config.ssm_conv_dim, config.ssm_nheads
        head_dtype = torch.promote_types(dtype, torch.float32)
        self.in_proj = nn.Linear(config.d_model, config.ssm_d_in_proj, bias=config.ssm_proj_bias, dtype=dtype)
        self.conv1d = nn.Conv1d(
            conv_dim, conv_dim, config.ssm_d_conv, groups=conv_dim, bias=config.ssm_conv_bias, dtype=dtype
        )
        self.A_log = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.D = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.dt_bias = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.norm = GatedRMSNorm(d_inner, config.ssm_norm_groups, config.norm_eps, dtype)
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.ssm_proj_bias, dtype=dtype)

    def forward(self, hidden: Tensor, positions: Positions, cache: SSMCache | None) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        c = self.config
        d_group = c.ssm_ngroups * c.ssm_d_state
        z, xBC, dt = torch.split(self.in_proj(hidden), [c.ssm_d_inner, c.ssm_conv_dim, c.ssm_nheads], dim=-1)
        xBC = F.silu(self._convolve(xBC, cache))
        x, B, C = torch.split(xBC, [c.ssm_d_inner, d_group, d_group], dim=-1)  # views: the scan takes any strides
        x = torch.unflatten(x, -1, (c.ssm_nheads, c.ssm_headdim))
        B = torch.unflatten(B, -1, (c.ssm_ngroups, c.ssm_d_state))
        C = torch.unflatten(C, -1, (c.ssm_ngroups, c.ssm_d_state))
        y = self._scan(x, dt, B, C, positions, cache)
        return cast("Tensor", self.out_proj(self.norm(y.flatten(-2), z)))

    def _convolve(self, xBC: Tensor, cache: SSMCache | None) -> Tensor:
        """The causal convolution of (batch, seqlen, conv_dim), in that layout."""
        batch, seqlen, conv_dim = xBC.shape
        before = self.config.ssm_d_conv - 1
        window = xBC.new_zeros(batch, conv_dim, before) if cache is None else cache.conv_window
        inputs = torch.cat([window, xBC.transpose(1, 2)], dim=-1)  # (b, conv_dim, before + t)
        if cache is not None:
            cache.conv_window.copy_(inputs[..., seqlen:])
        out = F.conv1d(inputs, self.conv1d.weight, self.conv1d.bias, groups=conv_dim)
        # One copy here, so that each token's channels are adjacent for the scan, the norm and out_proj.
        return out.transpose(1, 2).contiguous()

    def _scan(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, positions: Positions, cache: SSMCache | None
    ) -> Tensor:
        """The SSD of x (b, t, h, p), with dt (b, t, h) and B, C (b, t, g, n)."""
        A = -torch.exp(at_least_fp32(self.A_log))
        dt_limit = self.config.ssm_dt_limit
        if cache is not None and x.shape[1] == 1:
            if self.carry == "none":  # a new chunk forgets
                cache.state.masked_fill_(positions.t % self.config.ssm_chunk_size == 0, 0.0)
            y = ssd_step(
                cache.state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D=self.D, dt_bias=self.dt_bias, dt_limit=dt_limit
            )
            return y[:, None]
        result = self.ssd(
            x,
            dt,
            A,
            B,
            C,
            chunk_size=self.config.ssm_chunk_size,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=dt_limit,
            carry=self.carry,
            return_final_state=cache is not None,
        )
        if cache is None:
            return cast("Tensor", result)
        y, final_state = result
        cache.state.copy_(final_state)
        return y


class GatedRMSNorm(nn.Module):
    """RMSNorm of y · silu(z) over each of `groups` equal parts of the last dimension, in fp32 at least."""

    def __init__(self, width: int, groups: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """(…, width) twice to (…, width), in the dtype of y."""
        gated = torch.unflatten(at_least_fp32(y) * F.silu(at_least_fp32(z)), -1, (self.groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2)
        return self.weight * normed.to(y.dtype)


class Attention(nn.Module):
    """Causal attention with grouped key and value heads and partial rotary embeddings."""

    def __init__(self, config: BambaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.headdim = config.attn_headdim
        d_q = config.attn_nheads * config.attn_headdim
        d_kv = config.attn_nheads_kv * config.attn_headdim
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.attn_bias, dtype=dtype)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.attn_bias, dtype=dtype)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.attn_bias, dtype=dtype)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=config.attn_bias, dtype=dtype)

    def forward(self, hidden: Tensor, positions: Positions, cache: AttentionCache | None) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        seqlen = hidden.shape[1]
        q, k, v = (  # (b, heads, t, headdim)
            torch.unflatten(projection(hidden), -1, (-1, self.headdim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None:
            cache.keys.index_copy_(2, positions.t, k)
            cache.values.index_copy_(2, positions.t, v)
        if cache is not None and seqlen == 1:
            # The query heads of a group are the rows of one small product: nothing is repeated, shapes stay fixed.
            rows = q.view(q.shape[0], k.shape[1], -1, self.headdim)  # (b, nheads_kv, group, headdim)
            seen = torch.arange(cache.keys.shape[2], device=q.device) <= positions.t[:, None]  # (1, max_len)
            out = F.scaled_dot_product_attention(rows, cache.keys, cache.values, attn_mask=seen).reshape(q.shape)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return cast("Tensor", self.o_proj(out.transpose(1, 2).flatten(-2)))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate) · up)."""

    def __init__(self, config: BambaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias, dtype=dtype)
        self.up_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias, dtype=dtype)
        self.down_proj = nn.Linear(config.d_mlp, config.d_model, bias=config.mlp_bias, dtype=dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        return cast("Tensor", self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden)))


def locate(t: Tensor, config: BambaConfig, dtype: torch.dtype) -> Positions:
    """The rotary angles t · theta^(-2i / rotary_dim) of the positions t.

    The frequencies are fp32 by definition, as checkpoints were trained; angles are fp32, or fp64 for an fp64 model.
    """
    exponent = torch.arange(0, config.attn_rotary_dim, 2, device=t.device, dtype=torch.float32)
    frequency = 1.0 / config.attn_rope_theta ** (exponent / config.attn_rotary_dim)
    angle = t[:, None].to(torch.promote_types(dtype, torch.float32)) * frequency
    return Positions(t, angle.cos(), angle.sin())


def rotate(x: Tensor, positions: Positions) -> Tensor:
    """Rotate the first elements of each head of x (b, heads, t, headdim): element i pairs with i + rotary_dim / 2."""
    half = positions.cos.shape[-1]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = positions.cos, positions.sin
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(x.dtype)


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
