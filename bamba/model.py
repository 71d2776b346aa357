"""The Bamba model: embedding, then blocks of norm → Mamba-2 mixer or attention → norm → MLP, then norm and logits.

Prefill, continuation and decode are the same forward; with a cache and one token, the recurrent operators take one
step instead of a scan. Padded and packed sequences run as one row of all their tokens. Parameter names are those of
`transformers.BambaForCausalLM`, so its state dict loads as it is.
Sources: https://huggingface.co/blog/bamba; Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from bamba.attention import Attention
from bamba.cache import Cache, LayerCache
from bamba.config import BambaConfig
from bamba.initialise import init_weights
from bamba.mixer import Mamba2
from bamba.operators import Operators, choose_operators
from bamba.packing import read_packing, shape_of
from bamba.positions import Positions, place_packed, place_rectangle
from bamba.projections import embed, project
from bamba.slices import by_slices, takes_slices
from ssd_kernels.registry import default_name

if TYPE_CHECKING:
    from bamba.parallel.ranks import Ranks

_CARRIES = ("all", "none")


class Bamba(nn.Module):
    """The language model; a fresh one holds the random weights of `init_weights(seed=0)`.

    Args:
        config: what to build.
        ssm: the name of the SSD implementation in the registry of `ssd_kernels`; "auto" is the default of the device.
            Convolution, norm and decode step are of the same kind, torch or Triton; with an implementation from
            elsewhere, the defaults of the device.
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
        self._compiled: Callable[..., Tensor] | None = None
        self.ranks: Ranks | None = None  # see :mod:`bamba.parallel.tensor`
        device = torch.get_default_device() if device is None else torch.device(device)
        dtype = dtype or torch.get_default_dtype()
        with torch.device("meta"):  # shapes first: no initialisation that is then overwritten, no second copy
            self.model = Backbone(config, choose_operators(ssm, "meta"), carry, dtype)
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

    @property
    def is_compiled(self) -> bool:
        """Whether :meth:`compile` has been called."""
        return self._compiled is not None

    def expect_whole(self) -> None:
        """Expect that this is no part of a model.

        Raises:
            ValueError: a rank's part of a model.
        """
        if self.ranks is not None:
            raise ValueError(f"model must be whole, got the part of rank {self.ranks.rank} of {self.ranks.size}")

    def init_weights(self, seed: int) -> None:
        """Fill all weights at random, in place; the same seed, device and dtype give the same weights."""
        init_weights(self, self.config, seed)

    def new_cache(self, *, batch: int, max_len: int) -> Cache:
        """An empty cache on the model's device, in its dtype."""
        cache = Cache(self.config, batch=batch, max_len=max_len, device=self.device, dtype=self.dtype)
        if self._compiled is not None:
            cache.stay()
        return cache

    def forward(
        self,
        token_ids: Tensor,
        cache: Cache | None = None,
        *,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """The logits of the token after each given one.

        Args:
            token_ids: (batch, seqlen), int64 or int32, each in [0, vocab_size).
            cache: memory to continue from and to write to, made for `batch` sequences (`nseqs` with `cu_seqlens`); the
                tokens are whole sequences without it.
            attention_mask: (batch, seqlen), bool or integer, on any device, 1 for a token and 0 for padding, of these
                token ids alone, whatever the cache holds. The tokens of a row are one run, with padding before it or
                after it. Padding costs nothing and changes nothing: each token's logits are those of its row alone,
                and the cache then holds the tokens of each row, without padding.
            cu_seqlens: (nseqs + 1,), int64 or int32, where packed sequences begin and end in a batch of 1: rising from
                0 to seqlen; sequences may be empty. Each token's logits are those of its sequence alone.
            logits_to_keep: compute the logits of this many last tokens of each sequence only; of all by default.

        The host reads `attention_mask` and `cu_seqlens`, which waits for the device that they are on; pass neither
        when every place is a token, as in a decode step.

        Returns:
            (batch, seqlen, vocab_size), in the model's dtype; with `logits_to_keep`, (batch or nseqs, logits_to_keep,
            vocab_size), the last logit last. Zeros for padding, and in front where a sequence is shorter than
            `logits_to_keep`.

        Raises:
            ValueError: a shape that does not fit, no tokens, a row without any, a mask with holes, bounds that are
                none, or no room in the cache.
            TypeError: token ids, a mask or bounds that are not integers.
        """
        # Everything about the host is settled here; what it calls is for torch.compile.
        batch, seqlen = shape_of(token_ids)
        if logits_to_keep is not None and not 1 <= logits_to_keep <= seqlen:
            raise ValueError(f"logits_to_keep must be in [1, seqlen {seqlen}], got {logits_to_keep}")
        packing = read_packing(token_ids, attention_mask, cu_seqlens)
        counts = (seqlen,) * batch if packing is None else packing.lengths
        if cache is not None:
            cache.expect_room(counts)
        if packing is None:
            logits = self._as_compiled(token_ids, cache, logits_to_keep)
            if cache is not None:
                cache.count(counts)
            return logits
        token_ids = packing.pack(token_ids)
        positions = place_packed(token_ids, packing, cache, self.config, self.dtype)
        hidden = self.model(token_ids, positions, None if cache is None else cache.layers)
        if cache is not None:
            cache.advance(counts)
        sources, targets, shape = packing.kept(logits_to_keep)
        logits = self.logits(hidden[0, sources.to(hidden.device)])
        places = logits.new_zeros(math.prod(shape), logits.shape[-1])
        return cast("Tensor", places.index_copy(0, targets.to(hidden.device), logits).unflatten(0, shape))

    def compile(self, *args: Any, **options: Any) -> None:
        """Have torch.compile, with these arguments, take all that a call does on the device, as one graph.

        Prompts of all lengths share one, and so do the steps of all positions; a prompt of one token, and on a GPU one
        of few, takes other operators and a graph of its own, and so do prompts that continue a sequence. What the host
        counts stays outside, where `torch.compile(model)` has it in the graph: modes with CUDA graphs would record
        every position anew. Padded and packed calls run as they are. Make caches afterwards, by :meth:`new_cache`.

        Raises:
            NotImplementedError: a part of a model among ranks, whose sums the compiler does not see.
        """
        if self.ranks is not None:
            raise NotImplementedError(f"compile: the model must be whole, got one among {self.ranks.size} ranks")
        # Not of this model's method: a copy of the model takes it along, with weights of its own.
        self._compiled = torch.compile(type(self)._predict, *args, **options)

    def _as_compiled(self, token_ids: Tensor, cache: Cache | None, logits_to_keep: int | None) -> Tensor:
        """What :meth:`_predict` says, by what :meth:`compile` made of it."""
        if self._compiled is None:
            return self._predict(token_ids, cache, logits_to_keep)
        # A copy: a slice may have the strides of the whole, which the compiler tells apart.
        token_ids = token_ids.clone(memory_format=torch.contiguous_format)
        if token_ids.shape[1] > 1:
            torch._dynamo.maybe_mark_dynamic(token_ids, 1)
        return self._compiled(self, token_ids, cache, logits_to_keep)

    def _predict(self, token_ids: Tensor, cache: Cache | None, logits_to_keep: int | None) -> Tensor:
        """The logits of a rectangle of tokens, as :meth:`forward` has them; the cache's lengths on the device move on.

        Here shapes and whether the cache is empty decide, and no value that is the host's.
        """
        positions = place_rectangle(token_ids, cache, self.config, self.dtype)
        hidden = self.model(token_ids, positions, None if cache is None else cache.layers)
        if cache is not None:
            cache.lengths.add_(token_ids.shape[1])
        return self.logits(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits (…, vocab_size) of hidden states (…, d_model) that the backbone made."""
        logits = project(hidden, self.lm_head, self.model.operators, norm=self.model.final_layernorm)
        return logits if self.ranks is None else self.ranks.words(logits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the weights, and let what depends on them follow; every such call passes here."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it without types
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.choose_operators()
        return self

    def choose_operators(self) -> None:
        """Give every module the operators of where the weights live now."""
        operators = choose_operators(self.ssm, self.device.type)
        if self.ranks is not None:
            operators = self.ranks.among(operators)
        for module in self.modules():
            if isinstance(module, Backbone | Attention | Mamba2 | MLP):
                module.operators = operators


class Backbone(nn.Module):
    """Everything but the logits and the norm before them, whose weight it holds."""

    def __init__(self, config: BambaConfig, operators: Operators, carry: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.operators = operators
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, dtype=dtype)
        self.layers = nn.ModuleList(Block(config, layer, operators, carry, dtype) for layer in range(config.num_layers))
        self.final_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps, dtype=dtype)

    def forward(self, token_ids: Tensor, positions: Positions, caches: Sequence[LayerCache] | None) -> Tensor:
        """Hidden states (batch, seqlen, d_model), before the norm, of token ids (batch, seqlen) at their positions."""
        hidden = embed(token_ids, self.embed_tokens, self.operators)
        for i, block in enumerate(self.layers):
            hidden = block(hidden, positions, None if caches is None else caches[i])
        return hidden


class Block(nn.Module):
    """Norm → mixer or attention → residual, then norm → MLP → residual."""

    def __init__(self, config: BambaConfig, layer: int, operators: Operators, carry: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_attention = layer in config.attn_layers
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps, dtype=dtype)
        if self.is_attention:
            self.self_attn = Attention(config, operators, dtype)
        else:
            self.mamba = Mamba2(config, operators, carry, dtype)
        self.pre_ff_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps, dtype=dtype)
        self.feed_forward = MLP(config, operators, dtype)

    def forward(self, hidden: Tensor, positions: Positions, cache: LayerCache | None) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        mixer = self.self_attn if self.is_attention else self.mamba
        hidden = mixer(hidden, self.input_layernorm, positions, cache)
        return cast("Tensor", self.feed_forward(hidden, self.pre_ff_layernorm))


class MLP(nn.Module):
    """SwiGLU with the norm before it and the residual: hidden + down(silu(gate) · up)."""

    def __init__(self, config: BambaConfig, operators: Operators, dtype: torch.dtype) -> None:
        super().__init__()
        self.operators = operators
        self.gate_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias, dtype=dtype)
        self.up_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias, dtype=dtype)
        self.down_proj = nn.Linear(config.d_mlp, config.d_model, bias=config.mlp_bias, dtype=dtype)

    def forward(self, hidden: Tensor, norm: nn.RMSNorm) -> Tensor:
        """(batch, seqlen, d_model) to the same; more tokens than a slice are overwritten, where nothing is recorded."""
        rows = hidden.flatten(0, 1)[None]
        if takes_slices(rows):
            return by_slices(rows, lambda part, _: self._forward(part, norm)).view(hidden.shape)
        return self._forward(hidden, norm)

    def _forward(self, hidden: Tensor, norm: nn.RMSNorm) -> Tensor:
        gated = project(hidden, self.gate_proj, self.operators, norm=norm, up=self.up_proj)
        return project(gated, self.down_proj, self.operators, residual=hidden)
