"""Packed sequences as transformers tells of them, as bounds: `seq_idx` by token, or `cu_seq_lens_q`."""

import weakref
from typing import Any

import torch
from torch import Tensor

# The seq_idx whose bounds were last worked out: every layer of a model asks for those of one tensor.
_last: tuple["weakref.ref[Tensor]", int, Tensor] | None = None


def cu_seqlens_of(kwargs: dict[str, Any], batch: int, seqlen: int) -> Tensor | None:
    """The bounds, in the rows of a batch put one after another, of the sequences packed in them; None where none are.

    Args:
        kwargs: what the mixer was called with besides; of it `seq_idx`, (batch, seqlen), a number that changes where
            another sequence begins; or else `cu_seq_lens_q`, (nseqs + 1,), of one row.
        batch: rows.
        seqlen: tokens of a row.

    Returns:
        int32, (nseqs + 1,). On a GPU the host waits for `seq_idx`, once for all layers.

    Raises:
        ValueError: a shape that does not fit.
    """
    seq_idx, bounds = kwargs.get("seq_idx"), kwargs.get("cu_seq_lens_q")
    if seq_idx is not None:
        if tuple(seq_idx.shape) != (batch, seqlen):
            raise ValueError(f"seq_idx must be (batch, seqlen) {(batch, seqlen)}, got {tuple(seq_idx.shape)}")
        return _bounds(seq_idx)
    if bounds is not None and batch != 1:
        raise ValueError(f"cu_seq_lens_q tells of one row, got a batch of {batch}: pass seq_idx")
    return bounds


def row_starts(states: Tensor | None, cu_seqlens: Tensor, seqlen: int) -> Tensor | None:
    """The states, one a row, as one a sequence: the first of a row goes on from it, the others start from zero."""
    if states is None:
        return None
    starts = cu_seqlens[:-1].long()
    first = (starts % seqlen == 0)[:, None, None, None]
    return torch.where(first, states[starts // seqlen], 0.0)


def last_of_rows(states: Tensor, cu_seqlens: Tensor, batch: int, seqlen: int) -> Tensor:
    """Of states, one a sequence, those of the last sequence of each row."""
    ends = torch.arange(1, batch + 1, device=states.device, dtype=cu_seqlens.dtype) * seqlen
    return states[torch.searchsorted(cu_seqlens, ends) - 1]


def _bounds(seq_idx: Tensor) -> Tensor:
    global _last
    version = -1 if seq_idx.is_inference() else seq_idx._version  # which one made under inference_mode does not have
    if _last is not None and _last[0]() is seq_idx and _last[1] == version >= 0:
        return _last[2]
    changes = torch.ones_like(seq_idx, dtype=torch.bool)
    changes[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    starts = changes.flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([seq_idx.numel()])]).to(torch.int32)
    _last = (weakref.ref(seq_idx), version, bounds)
    return bounds
