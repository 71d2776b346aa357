"""Attention of a rank's part of a sequence: its queries are the last, of fewer tokens than keys and values are of."""

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right

if TYPE_CHECKING:
    from bamba.parallel.part import Part

aten = torch.ops.aten


def keys_and_values(k: Tensor, v: Tensor, part: "Part") -> tuple[Tensor, Tensor]:
    """Keys and values (batch, stop, nheads_kv, headdim) of all tokens so far, from this rank's."""
    earlier = k.new_empty(2, k.shape[0], part.start, *k.shape[2:])
    part.receive(earlier)
    seen = torch.cat([earlier, torch.stack([k, v])], dim=2)
    part.send(seen)
    return seen[0], seen[1]


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let the last queries of a sequence see all keys up to their own.

    In two parts, all keys before the queries' and the causal square of their own, put together by the sums of their
    exponentials: the fastest kernels of CUDA know no other causal shape than the square, and take for both parts half
    the time that torch's own choice for the whole takes. Source: Liu et al., "Ring Attention" (arXiv:2310.01889).

    Args:
        q: (batch, nheads, seqlen, headdim).
        k: (batch, nheads_kv, total, headdim), total >= seqlen.
        v: as k.

    Returns:
        As q.
    """
    before = k.shape[2] - q.shape[2]
    if before == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    own = _attend(q, k[:, :, before:], v[:, :, before:], is_causal=True)
    earlier = _attend(q, k[:, :, :before], v[:, :, :before], is_causal=False)
    if own is None or earlier is None:
        seen = cast("Tensor", causal_lower_right(q.shape[2], k.shape[2]))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    # e^a / (e^a + e^b), of logarithms of sums.
    share = torch.sigmoid(earlier[1] - own[1]).reshape(q.shape[:3])[..., None]
    return torch.lerp(own[0].to(share.dtype), earlier[0].to(share.dtype), share).to(q.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor] | None:
    """What torch would choose, with the logarithms of its sums; None where that has none or wants heads repeated."""
    chosen = torch._fused_sdp_choice(q, k, v, None, 0.0, is_causal, enable_gqa=True)
    if chosen == SDPBackend.CUDNN_ATTENTION.value:
        out, sums, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, is_causal)
    elif chosen == SDPBackend.FLASH_ATTENTION.value and not q.is_cuda:
        out, sums = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)
    elif chosen == SDPBackend.FLASH_ATTENTION.value and q.shape[-1] % 8 == 0:
        out, sums, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)
    else:
        return None
    return out, sums
