"""Attention of one token to a cache, the keys shared between programs: rotate, store, attend; then weigh the parts.

    out = Σ_s e^(m_s − m) o_s / Σ_s e^(m_s − m) l_s        m_s, l_s, o_s: largest score, sum and outputs of part s

Contract: :class:`ssd_kernels.attention_interface.AttentionStep`. Reference: `attention_step` there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.attention_interface import check_attention_step
from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.portable.configs import WEIGH, attention_step_config, tile_size


def attention_step(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, lengths: Tensor
) -> Tensor:
    """The step in two Triton kernels, forward only; see :class:`ssd_kernels.attention_interface.AttentionStep`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: a head of more than 256 elements, keys or values whose elements are not adjacent; on
            `backward`.
    """
    check_attention_step(q, k, v, cos, sin, keys, values, lengths)
    expect_runnable("q", q)
    if q.shape[2] > 256:
        raise NotImplementedError(f"q: headdim must be at most 256 for 'triton', got {q.shape[2]}; 'torch' takes any")
    for name, tensor in (("keys", keys), ("values", values)):
        if tensor.shape[3] > 1 and tensor.stride(3) != 1:
            raise NotImplementedError(
                f"{name}: elements of a head must be adjacent for 'triton', got {tensor.stride()}"
            )
    out: Tensor = call("attention_step", q, k, v, cos, sin, keys, values, lengths)
    return out


def _attention_step(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, lengths: Tensor
) -> Tensor:
    out = _fake_attention_step(q)
    if out.numel() == 0:
        return out
    batch, nheads, headdim = q.shape
    nheads_kv, max_len = keys.shape[1:3]
    config = attention_step_config(q.dtype, max_len, batch * nheads_kv)
    span = config.block["SPAN"]
    splits = triton.cdiv(max_len, span)
    parts = torch.empty((batch, nheads, splits, headdim), dtype=torch.float32, device=q.device)
    weights = torch.empty((batch, nheads, splits, 2), dtype=torch.float32, device=q.device)
    block_d = tile_size(headdim)
    with device_of(q):
        launch(
            _attend_kernel, (batch * nheads_kv, splits),
            q, k, v, cos, sin, keys, values, lengths, parts, weights,
            (q.stride(), k.stride(), v.stride(), cos.stride(), sin.stride(), keys.stride(), values.stride()),
            lengths.stride(0), nheads_kv, max_len, headdim**-0.5,
            GROUP=nheads // nheads_kv, HEADDIM=headdim, HALF=cos.shape[1], SPAN=span,
            BLOCK_G=tile_size(nheads // nheads_kv), BLOCK_D=block_d, BLOCK_T=config.block["BLOCK_T"],
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        launch(
            _weigh_kernel, (batch * nheads,), parts, weights, out, splits,
            HEADDIM=headdim, BLOCK_S=tile_size(splits), BLOCK_D=block_d, **WEIGH.kwargs,
        )  # fmt: skip
    return out


def _fake_attention_step(q: Tensor, *_: object) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


define(
    "attention_step(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, "
    "Tensor lengths) -> Tensor",
    _attention_step,
    _fake_attention_step,
)


@triton.jit(do_not_specialize=["nheads_kv", "max_len", "scale"])
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr, lengths_ptr, parts_ptr, weights_ptr,
    strides, lengths_stride, nheads_kv, max_len, scale,
    GROUP: tl.constexpr, HEADDIM: tl.constexpr, HALF: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program: SPAN tokens of a key head, for the query heads of its group. Grid: (batch · nheads_kv, parts).

    `strides` are those of q, k, v, cos, sin, keys and values. The program in whose span the new token lies stores its
    key and value, and takes them from where it has them.
    """
    batch = (tl.program_id(0) // nheads_kv).to(tl.int64)
    head_kv = (tl.program_id(0) % nheads_kv).to(tl.int64)
    first = tl.program_id(1) * SPAN
    t = tl.load(lengths_ptr + batch * lengths_stride).to(tl.int32)
    has_room = (t >= 0) & (t < max_len)
    offs_g = tl.arange(0, BLOCK_G)
    offs_d = tl.arange(0, BLOCK_D)
    offs_t = tl.arange(0, BLOCK_T)
    in_g = offs_g < GROUP
    in_d = offs_d < HEADDIM
    heads = head_kv * GROUP + offs_g
    q_ptrs = q_ptr + batch * strides[0][0] + heads[:, None] * strides[0][1]
    q = _turn(q_ptrs, cos_ptr + batch * strides[3][0], sin_ptr + batch * strides[4][0],
              offs_d, in_g[:, None] & in_d[None, :], strides[0][2], strides[3][1], strides[4][1], HALF)  # fmt: skip
    q = (q * (scale * 1.4426950408889634)).to(keys_ptr.dtype.element_ty)  # (G, D), scores in units of log 2
    keys_ptr += batch * strides[5][0] + head_kv * strides[5][1]
    values_ptr += batch * strides[6][0] + head_kv * strides[6][1]
    k_ptrs = k_ptr + batch * strides[1][0] + head_kv * strides[1][1] + tl.zeros((1, 1), dtype=tl.int64)
    new_k = _turn(k_ptrs, cos_ptr + batch * strides[3][0], sin_ptr + batch * strides[4][0],
                  offs_d, in_d[None, :], strides[1][2], strides[3][1], strides[4][1], HALF)  # fmt: skip
    new_k = new_k.to(keys_ptr.dtype.element_ty)  # (1, D)
    v_ptrs = v_ptr + batch * strides[2][0] + head_kv * strides[2][1] + offs_d.to(tl.int64)[None, :] * strides[2][2]
    new_v = tl.load(v_ptrs, mask=in_d[None, :], other=0.0)
    top = tl.full((BLOCK_G,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_G,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_D), dtype=tl.float32)
    if (first <= t) & (t < first + SPAN) & has_room:
        tl.store(keys_ptr + t.to(tl.int64) * strides[5][2] + offs_d[None, :], new_k, mask=in_d[None, :])
        tl.store(values_ptr + t.to(tl.int64) * strides[6][2] + offs_d[None, :], new_v, mask=in_d[None, :])
        top = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), 1)
        total += 1.0
        acc += new_v.to(tl.float32)
    # The tokens held, which go to the products as they were copied.
    stop = tl.where(has_room, tl.minimum(first + SPAN, t), first)
    for start in range(first, stop, BLOCK_T):
        rows = start + offs_t
        held = (rows < t)[:, None] & in_d[None, :]
        offs = rows.to(tl.int64)[:, None]
        keys = tl.load(keys_ptr + offs * strides[5][2] + offs_d[None, :], mask=held, other=0.0)  # (T, D)
        values = tl.load(values_ptr + offs * strides[6][2] + offs_d[None, :], mask=held, other=0.0)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee")  # (G, T)
        scores = tl.where((rows < t)[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        kept = tl.exp2(top - new_top)
        total = total * kept + tl.sum(weights, 1)
        acc = acc * kept[:, None]
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
        top = new_top
    place = (batch * nheads_kv * GROUP + heads) * tl.num_programs(1) + tl.program_id(1)
    # A sequence without room: NaN, in every part, so that no part hides it.
    total = tl.where(has_room, total, float("nan"))
    tl.store(parts_ptr + place[:, None] * HEADDIM + offs_d[None, :], acc, mask=in_g[:, None] & in_d[None, :])
    tl.store(weights_ptr + place * 2, top, mask=in_g)
    tl.store(weights_ptr + place * 2 + 1, total, mask=in_g)


@triton.jit
def _turn(ptrs, cos_ptr, sin_ptr, offs_d, mask, stride, cos_stride, sin_stride, HALF: tl.constexpr):
    """Rows of heads at `ptrs`, (R, D) in fp32, the first 2 · HALF elements turned, as they would be rounded."""
    x = tl.load(ptrs + offs_d.to(tl.int64)[None, :] * stride, mask=mask, other=0.0)
    turned = offs_d < 2 * HALF
    is_first = offs_d < HALF
    partner = tl.where(is_first, offs_d + HALF, offs_d - HALF)
    angle = tl.where(is_first, offs_d, offs_d - HALF).to(tl.int64)
    other = tl.load(ptrs + partner.to(tl.int64)[None, :] * stride, mask=mask & turned[None, :], other=0.0)
    cos = tl.load(cos_ptr + angle * cos_stride, mask=turned, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle * sin_stride, mask=turned, other=0.0).to(tl.float32)
    sin = tl.where(is_first, -sin, sin)
    y = x.to(tl.float32) * cos[None, :] + other.to(tl.float32) * sin[None, :]
    return y.to(x.dtype).to(tl.float32)


@triton.jit(do_not_specialize=["splits"])
def _weigh_kernel(
    parts_ptr, weights_ptr, out_ptr, splits,
    HEADDIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: the output of one head, of its parts. Grid: (batch · nheads,)."""
    row = tl.program_id(0).to(tl.int64)
    offs_s = tl.arange(0, BLOCK_S)
    offs_d = tl.arange(0, BLOCK_D)
    in_s = offs_s < splits
    in_d = offs_d < HEADDIM
    place = row * splits + offs_s
    top = tl.load(weights_ptr + place * 2, mask=in_s, other=float("-inf"))
    total = tl.load(weights_ptr + place * 2 + 1, mask=in_s, other=0.0)
    parts = tl.load(
        parts_ptr + place[:, None] * HEADDIM + offs_d[None, :], mask=in_s[:, None] & in_d[None, :], other=0.0
    )
    largest = tl.maximum(tl.max(top, 0), -3e38)  # of no part at all, too, no difference of two infinities
    weight = tl.where(top == float("-inf"), 0.0, tl.exp2(top - largest))
    out = tl.sum(parts * weight[:, None], 0) / tl.sum(total * tl.where(total == total, weight, 1.0), 0)
    tl.store(out_ptr + row * HEADDIM + offs_d, out.to(out_ptr.dtype.element_ty), mask=in_d)
