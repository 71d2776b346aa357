"""Causal attention with grouped key and value heads, partial rotary embeddings, and a cache."""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bamba.cache import AttentionCache
from bamba.config import BambaConfig
from bamba.operators import Operators
from bamba.parallel.attention import attend_causally, keys_and_values
from bamba.positions import Positions, rotate
from bamba.projections import project, project_each

# cuDNN's attention is the fastest of torch's on CUDA, and makes a plan of 40 ms for every length that a process has not
# met. From so many tokens on one call wins that back.
_WORTH_A_PLAN = 32768
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Attention(nn.Module):
    """Norm → q, k, v projections → rotary embeddings → causal attention over the sequence so far → o_proj, residual."""

    def __init__(self, config: BambaConfig, operators: Operators, dtype: torch.dtype) -> None:
        super().__init__()
        self.operators = operators
        self.headdim = config.attn_headdim
        d_q = config.attn_nheads * config.attn_headdim
        d_kv = config.attn_nheads_kv * config.attn_headdim
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.attn_bias, dtype=dtype)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.attn_bias, dtype=dtype)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.attn_bias, dtype=dtype)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=config.attn_bias, dtype=dtype)

    def forward(self, hidden: Tensor, norm: nn.RMSNorm, positions: Positions, cache: AttentionCache | None) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        q, k, v = (  # (b, t, heads, headdim)
            torch.unflatten(projected, -1, (-1, self.headdim))
            for projected in project_each(hidden, (self.q_proj, self.k_proj, self.v_proj), self.operators, norm=norm)
        )
        attend = self.operators.attention_step
        if attend is not None and cache is not None and positions.held is not None and _is_step(q, positions):
            out = attend(
                q[:, 0], k[:, 0], v[:, 0], positions.cos[:, 0], positions.sin[:, 0], cache.keys, cache.values,
                positions.held,
            )  # fmt: skip
            return project(out.flatten(1)[:, None], self.o_proj, self.operators, residual=hidden)
        q, k = rotate(q, positions), rotate(k, positions)
        shard, t = positions.shard, positions.t
        if shard is not None:
            k, v = keys_and_values(k, v, shard)
            t = torch.arange(k.shape[1], device=k.device)
        if cache is not None:
            cache.keys[positions.rows, :, t] = k
            cache.values[positions.rows, :, t] = v
        packed = positions.packed
        if packed is not None:
            q, k, v = packed.spread(q), packed.spread(k), packed.spread(v)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (b, heads, t, headdim)
        if shard is not None:
            out = attend_causally(q, k, v)
        elif cache is not None and positions.held is not None:
            out = attend_to_cache(q, cache, positions.held, positions.reach)
        else:
            # Packed sequences begin their rows, so that causality alone keeps what follows them out of sight.
            with _kernels(k.shape[2]):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out = out.transpose(1, 2)
        if packed is not None:
            out = packed.gather(out)
        return project(out.flatten(-2), self.o_proj, self.operators, residual=hidden)


def _is_step(q: Tensor, positions: Positions) -> bool:
    """Whether these are one token of each sequence of a rectangle."""
    return q.shape[1] == 1 and positions.packed is None and positions.shard is None


def attend_to_cache(q: Tensor, cache: AttentionCache, held: Tensor, reach: int) -> Tensor:
    """Let queries see the cached tokens up to their own.

    Args:
        q: (batch, nheads, seqlen, headdim), of tokens whose keys and values the cache already has.
        cache: their sequences.
        held: (batch,), how many tokens of each sequence came before these.
        reach: tokens of the cache to look at; masked beyond each query's own, in (batch, nheads / nheads_kv, seqlen,
            reach) bools.

    Returns:
        As q.
    """
    nheads, seqlen = q.shape[1:3]
    keys, values = cache.keys[:, :, :reach], cache.values[:, :, :reach]
    nheads_kv = keys.shape[1]
    # The query heads of a group are rows of one product with their keys: nothing is repeated, shapes stay fixed.
    rows = q.unflatten(1, (nheads_kv, -1)).flatten(2, 3)  # (b, nheads_kv, group · t, headdim)
    t = held[:, None] + torch.arange(seqlen, device=q.device)
    seen = torch.arange(reach, device=q.device) <= t[:, :, None]  # (b, t, reach)
    seen = seen[:, None, None].expand(-1, -1, nheads // nheads_kv, -1, -1).flatten(2, 3)
    with _kernels(reach):
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen)
    return cast("Tensor", out.unflatten(2, (-1, seqlen)).flatten(1, 2))


def _kernels(reach: int) -> AbstractContextManager[None]:
    """Which of torch's kernels attend to `reach` tokens."""
    return sdpa_kernel(WITHOUT_PLANS) if reach < _WORTH_A_PLAN else nullcontext()
