"""Sequences of unequal lengths as one row of tokens, without padding: what the host settles before a forward."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the tokens of several sequences are, in the caller's layout and one after the other."""

    lengths: tuple[int, ...]  # tokens of each sequence
    shape: tuple[int, int]  # of the caller's token ids
    places: Tensor  # (total,) int64 on the CPU: where in the caller's token ids, flattened, each token is

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where each sequence begins in the row of all tokens, and the number of all tokens."""
        return (0, *accumulate(self.lengths))

    @property
    def rows(self) -> Tensor:
        """The sequence of each token, (total,) int64 on the CPU."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))

    @property
    def offsets(self) -> Tensor:
        """How many tokens of its sequence come before each token in this call, (total,) int64 on the CPU."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    def pack(self, token_ids: Tensor) -> Tensor:
        """The tokens of the caller's `token_ids`, (1, total)."""
        return token_ids.flatten()[self.places.to(token_ids.device)][None]

    def kept(self, count: int | None) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Which tokens of the row of all tokens to keep, where in a rectangle, flattened, each goes, and its shape.

        The rectangle is the caller's, or with a `count` of tokens to keep of each sequence, (nseqs, count): filled from
        the right, where a sequence has fewer.
        """
        if count is None:
            return torch.arange(len(self.places)), self.places, self.shape
        ends = torch.tensor(self.bounds[1:])
        sources = ends[:, None] + torch.arange(-count, 0)  # (nseqs, count)
        exist = sources >= ends[:, None] - torch.tensor(self.lengths)[:, None]
        return sources[exist], exist.flatten().nonzero().flatten(), (len(self.lengths), count)


def shape_of(token_ids: Tensor) -> tuple[int, int]:
    """The batch and the seqlen of token ids that a model takes.

    Raises:
        ValueError: not two dimensions, or no tokens.
        TypeError: another dtype than int64 and int32.
    """
    if token_ids.ndim != 2 or token_ids.shape[1] == 0:
        raise ValueError(f"token_ids must have shape (batch, seqlen), seqlen >= 1, got {tuple(token_ids.shape)}")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"token_ids: dtype must be int64 or int32, got {token_ids.dtype}")
    return token_ids.shape[0], token_ids.shape[1]


def read_packing(token_ids: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None) -> Packing | None:
    """The packing that a mask of padding or the bounds of packed sequences say; none where every place is a token.

    Both are read by the host: on a GPU this waits for the device.

    Raises:
        ValueError: a mask or bounds that do not fit the token ids or say no sequences, or both given.
        TypeError: a mask that is neither bool nor integer, or bounds that are not integers.
    """
    if attention_mask is not None and cu_seqlens is not None:
        raise ValueError("attention_mask and cu_seqlens: expected at most one of them, got both")
    shape = (token_ids.shape[0], token_ids.shape[1])
    if attention_mask is not None:
        return _read_mask(attention_mask, shape)
    if cu_seqlens is not None:
        return _read_bounds(cu_seqlens, shape)
    return None


def _read_mask(attention_mask: Tensor, shape: tuple[int, int]) -> Packing | None:
    if tuple(attention_mask.shape) != shape:
        raise ValueError(
            f"attention_mask must have the shape of token_ids, {shape}, that of this call's tokens alone, "
            f"got {tuple(attention_mask.shape)}"
        )
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise TypeError(f"attention_mask: dtype must be bool or an integer, got {attention_mask.dtype}")
    mask = attention_mask.cpu()
    if mask.dtype != torch.bool:
        if ((mask != 0) & (mask != 1)).any():
            raise ValueError(f"attention_mask must hold 1 for a token and 0 for padding, got {mask.unique().tolist()}")
        mask = mask == 1
    begins = mask.clone()
    begins[:, 1:] &= ~mask[:, :-1]
    for row, runs in enumerate(begins.sum(dim=1).tolist()):
        if runs != 1:
            found = "no token" if runs == 0 else f"{runs} runs of tokens"
            raise ValueError(
                f"attention_mask: the tokens of each row must be one run, padding before or after it, "
                f"got {found} in row {row}"
            )
    if mask.all():
        return None
    lengths = tuple(mask.sum(dim=1).tolist())
    return Packing(lengths=lengths, shape=shape, places=mask.flatten().nonzero().flatten())


def _read_bounds(cu_seqlens: Tensor, shape: tuple[int, int]) -> Packing:
    if shape[0] != 1:
        raise ValueError(f"token_ids must have a batch of 1 where cu_seqlens is given, got a batch of {shape[0]}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have shape (nseqs + 1,), nseqs >= 1, got {tuple(cu_seqlens.shape)}")
    if cu_seqlens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"cu_seqlens: dtype must be int64 or int32, got {cu_seqlens.dtype}")
    bounds = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != shape[1] or min(lengths) < 0:
        raise ValueError(f"cu_seqlens must rise from 0 to seqlen {shape[1]}, got {bounds}")
    return Packing(lengths=lengths, shape=shape, places=torch.arange(shape[1]))
