"""Where the tokens of one forward stand: in their sequences, in a row of packed ones, and in the cache."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bamba.cache import Cache
from bamba.config import BambaConfig
from bamba.packing import Packing
from ssd_kernels.attention_interface import rotated

if TYPE_CHECKING:
    from bamba.parallel.part import Part


class Packed(NamedTuple):
    """How the tokens of several sequences, one after the other in one row, go into a rectangle and back."""

    cu_seqlens: Tensor  # (nseqs + 1,) int64, the bounds of the sequences
    slots: Tensor  # (total,) int64, where in (nseqs, longest), flattened, each token goes; each row begins with tokens
    nseqs: int
    longest: int

    def spread(self, x: Tensor) -> Tensor:
        """(1, total, …) to (nseqs, longest, …), zeros after the end of a sequence: a NaN would not stay masked."""
        spread = x.new_zeros(self.nseqs * self.longest, *x.shape[2:]).index_copy(0, self.slots, x[0])
        return spread.view(self.nseqs, self.longest, *x.shape[2:])

    def gather(self, x: Tensor) -> Tensor:
        """(nseqs, longest, …) to (1, total, …)."""
        return x.flatten(0, 1)[self.slots][None]


class Positions(NamedTuple):
    """Where the tokens of one forward stand, as every layer needs it; `t` is (seqlen,) where all rows agree."""

    t: Tensor  # (seqlen,) or (batch, seqlen) int64, counted from the start of each sequence
    cos: Tensor  # (…, rotary_dim / 2), of t
    sin: Tensor  # as cos
    rows: Tensor | None = None  # (batch, 1), or (1, total) of packed ones: the cache's row of each token
    held: Tensor | None = None  # (batch or nseqs,) int64, tokens in the cache before these; none if these come first
    reach: int = 0  # where tokens are held: how much of the cache the longest sequence can reach, these included
    packed: Packed | None = None
    shard: "Part | None" = None  # where other ranks have the other tokens

    @property
    def cu_seqlens(self) -> Tensor | None:
        """The bounds of packed sequences, (nseqs + 1,)."""
        return None if self.packed is None else self.packed.cu_seqlens

    def part(self, tokens: Tensor, start: int) -> "Positions":
        """Of a part (batch, seqlen, …) of these tokens of a rectangle, from `start` on, as what a state continues by.

        The tokens before it are held by then: what remembers them is not the attention's.
        """
        batch, stop = tokens.shape[0], start + tokens.shape[1]
        t = self.t[..., start:stop]
        held = self.held if start == 0 else t[..., 0].expand(batch)
        return Positions(t, self.cos[..., start:stop, :], self.sin[..., start:stop, :], held=held)


def locate(t: Tensor, config: BambaConfig, dtype: torch.dtype) -> Positions:
    """The rotary angles t · theta^(-2i / rotary_dim) of the positions t.

    The frequencies are fp32 by definition, as checkpoints were trained; angles are fp32, or fp64 for an fp64 model.
    """
    exponent = torch.arange(0, config.attn_rotary_dim, 2, device=t.device, dtype=torch.float32)
    frequency = 1.0 / config.attn_rope_theta ** (exponent / config.attn_rotary_dim)
    angle = t[..., None].to(torch.promote_types(dtype, torch.float32)) * frequency
    return Positions(t, angle.cos(), angle.sin())


def rotate(x: Tensor, positions: Positions) -> Tensor:
    """Rotate the first elements of each head of x (b, t, heads, headdim): element i pairs with i + rotary_dim / 2."""
    return rotated(x, positions.cos, positions.sin)


def place_rectangle(token_ids: Tensor, cache: Cache | None, config: BambaConfig, dtype: torch.dtype) -> Positions:
    """The positions of (batch, seqlen) tokens without padding.

    One token with a cache is a decode step: it reads nothing from the device, and looks at the whole cache, however
    much is held, so that every step has the same shapes.
    """
    batch, seqlen = token_ids.shape
    t = torch.arange(seqlen, device=token_ids.device)
    if cache is None:
        return locate(t, config, dtype)
    rows = torch.arange(batch, device=token_ids.device)[:, None]
    if seqlen > 1 and cache.length == 0:
        return locate(t, config, dtype)._replace(rows=rows)
    reach = cache.max_len if seqlen == 1 else cache.length + seqlen
    held = cache.lengths
    return locate(held[:, None] + t, config, dtype)._replace(rows=rows, held=held, reach=reach)


def place_packed(
    token_ids: Tensor, packing: Packing, cache: Cache | None, config: BambaConfig, dtype: torch.dtype
) -> Positions:
    """The positions of (1, total) tokens of packed sequences."""
    device, longest = token_ids.device, max(packing.lengths)
    packed = Packed(
        cu_seqlens=torch.tensor(packing.bounds, device=device),
        slots=(packing.rows * longest + packing.offsets).to(device),
        nseqs=len(packing.lengths),
        longest=longest,
    )
    rows, t = packing.rows[None].to(device), packing.offsets[None].to(device)
    if cache is None or cache.length == 0:
        return locate(t, config, dtype)._replace(rows=rows, packed=packed)
    reach = max(held + count for held, count in zip(cache.host_lengths, packing.lengths, strict=True))
    held = cache.lengths
    return locate(held[rows] + t, config, dtype)._replace(rows=rows, held=held, reach=reach, packed=packed)
