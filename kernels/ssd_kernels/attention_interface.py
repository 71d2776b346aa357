"""Attention of one new token of each sequence to a cache of keys and values: its contract, checks, and torch form."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import INDICES, expect_device, expect_dtype, expect_ndim, expect_same_dtype, expect_shape


class AttentionStep(Protocol):
    """One token of causal attention with grouped heads, rotary embeddings and a cache, for each sequence.

        q, k = rotated(q), rotated(k)        keys[t], values[t] ← k, v        out = softmax(q keysᵀ / √headdim) values

    over the tokens up to and including t = lengths, where element i of the first half of what is rotated pairs with
    element i of its second half. Products and sums are fp32. Source: Su et al., "RoFormer" (arXiv:2104.09864); Dao et
    al., "Flash-Decoding" (2023) for the split of the keys.

    Args:
        q: (batch, nheads, headdim), any strides; head h attends to key head h // (nheads // nheads_kv).
        k: (batch, nheads_kv, headdim), in the dtype of q; v alike.
        v: as k.
        cos: (batch, rotary_dim / 2), of the angles at t; rotary_dim is at most headdim, what is beyond stays.
        sin: as cos.
        keys: (batch, nheads_kv, max_len, headdim), in the dtype of q; updated in place.
        values: as keys.
        lengths: (batch,), int32 or int64, the tokens held before this one; on a GPU the host does not read them: of a
            sequence without room nothing is written, and its out is NaN.

    Returns:
        Contiguous (batch, nheads, headdim) in the dtype of q.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: legal, but not supported by this implementation.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, lengths: Tensor
    ) -> Tensor:
        """Take one token."""


def attention_step(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, lengths: Tensor
) -> Tensor:
    """The step in torch; see :class:`AttentionStep`. The host reads `lengths`."""
    check_attention_step(q, k, v, cos, sin, keys, values, lengths)
    max_len = keys.shape[2]
    if q.shape[0] and not 0 <= int(lengths.min()) <= int(lengths.max()) < max_len:
        raise ValueError(f"lengths must be in [0, max_len {max_len}), got {lengths.tolist()}")
    q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    rows = torch.arange(q.shape[0], device=q.device)
    keys[rows, :, lengths.long()] = k
    values[rows, :, lengths.long()] = v
    seen = torch.arange(max_len, device=q.device) <= lengths[:, None]
    # A place without a token may hold anything, a NaN too, which a mask would keep.
    unseen = ~seen[:, None, :, None]
    held_keys, held_values = keys.masked_fill(unseen, 0.0), values.masked_fill(unseen, 0.0)
    out = F.scaled_dot_product_attention(
        q[:, :, None], held_keys, held_values, attn_mask=seen[:, None, None], enable_gqa=True
    )
    return out[:, :, 0].contiguous()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (…, heads, headdim) with their first elements turned by angles (…, rotary_dim / 2)."""
    half = cos.shape[-1]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = (first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)
    return torch.cat([*turned, rest], dim=-1)


def check_attention_step(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, lengths: Tensor
) -> None:
    """Check the arguments of :class:`AttentionStep`, but for the values of lengths."""
    expect_ndim("q", q, "(batch, nheads, headdim)")
    expect_ndim("keys", keys, "(batch, nheads_kv, max_len, headdim)")
    batch, nheads, headdim = q.shape
    nheads_kv = keys.shape[1]
    if nheads_kv < 1 or nheads % nheads_kv:
        raise ValueError(f"keys: nheads_kv must divide nheads {nheads}, got {nheads_kv}")
    cache = (batch, nheads_kv, keys.shape[2], headdim)
    expect_shape("keys", keys, "(batch, nheads_kv, max_len, headdim)", cache)
    expect_shape("values", values, "(batch, nheads_kv, max_len, headdim)", cache)
    expect_shape("k", k, "(batch, nheads_kv, headdim)", (batch, nheads_kv, headdim))
    expect_shape("v", v, "(batch, nheads_kv, headdim)", (batch, nheads_kv, headdim))
    expect_ndim("cos", cos, "(batch, rotary_dim / 2)")
    expect_shape("cos", cos, "(batch, rotary_dim / 2)", (batch, cos.shape[-1]))
    expect_shape("sin", sin, "(batch, rotary_dim / 2)", tuple(cos.shape))
    if 2 * cos.shape[-1] > headdim:
        raise ValueError(f"cos: rotary_dim must be at most headdim {headdim}, got {2 * cos.shape[-1]}")
    expect_shape("lengths", lengths, "(batch,)", (batch,))
    for name, tensor in (("q", q), ("cos", cos), ("sin", sin)):
        expect_dtype(name, tensor)
    for name, tensor in (("k", k), ("v", v), ("keys", keys), ("values", values)):
        expect_same_dtype(name, tensor, "q", q)
    expect_dtype("lengths", lengths, INDICES)
    expect_device("q", q, k=k, v=v, cos=cos, sin=sin, keys=keys, values=values, lengths=lengths)
