"""A rank's part of a sequence: what its layers need of the tokens on other ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bamba.parallel.ranks import gather


@dataclass(frozen=True, kw_only=True)
class Part:
    """The tokens `bounds[rank]` to `bounds[rank + 1]` of a sequence; every rank has some.

    Every rank makes the same calls in the same order. A rank's final windows, states, keys and values are those of the
    whole sequence, so that any of them can go on with it.
    """

    group: dist.ProcessGroup
    bounds: tuple[int, ...]  # (ranks + 1,), rising from 0 to the length of the sequence
    carry: str

    @property
    def rank(self) -> int:
        """This rank's place in the sequence."""
        return self.group.rank()

    @property
    def start(self) -> int:
        """The first token of this rank."""
        return self.bounds[self.rank]

    @property
    def stop(self) -> int:
        """The token after this rank's last."""
        return self.bounds[self.rank + 1]

    def windows(self, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The last `width` inputs before this rank's tokens, and those of the whole sequence.

        Args:
            x: (batch, seqlen, channels), this rank's.
            width: inputs that a convolution looks back.

        Returns:
            Twice (batch, channels, width), zeros where the sequence has not begun.
        """
        tail = x.new_zeros(x.shape[0], width, x.shape[2])
        kept = min(width, x.shape[1])
        tail[:, width - kept :] = x[:, x.shape[1] - kept :]
        windows = [torch.zeros_like(tail)]
        for rank, theirs in enumerate(gather(tail, self.group)):
            kept = min(width, self.bounds[rank + 1] - self.bounds[rank])
            windows.append(torch.cat([windows[-1], theirs[:, width - kept :]], dim=1)[:, kept:])
        return windows[self.rank].mT.contiguous(), windows[-1].mT.contiguous()

    def scan(
        self, scan: Callable[..., Any], steps: Tensor, inputs: tuple[Tensor, ...], *, return_final_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The scan of this rank's tokens, from the state that those before it leave.

        Every rank but the first scans twice: from zero, for what its part adds to the state, and from the true state.
        The other exact form, adding C_i e^{a_i} h to y, reads and writes y and reads C and dt: as many bytes as a scan
        moves, and a kernel more to keep. Independent chunks scan once and ask nobody.

        Args:
            scan: an SSD with all options but `initial_state` and `return_final_state`.
            steps: (batch, seqlen, nheads), the steps of the scan, discretised.
            inputs: x, dt, A, B, C, of this rank's tokens.
            return_final_state: return the state after the last token of the whole sequence.

        Returns:
            y, as x, and the state (batch, nheads, headdim, d_state), or None.
        """
        last = len(self.bounds) - 2
        if self.carry == "none":
            if not return_final_state:
                return scan(*inputs), None
            y, state = scan(*inputs, return_final_state=True)
            dist.broadcast(state, group_src=last, group=self.group)
            return y, state
        y, added = scan(*inputs, return_final_state=True)
        nats = (steps.sum(1, dtype=torch.float64) * inputs[2].double()).to(added.dtype)  # (b, h)
        # One message: the states and, in one element more of each head, how much the part lets through.
        told = gather(torch.cat([added.flatten(2), nats.exp()[..., None]], dim=-1), self.group)
        entering = [torch.zeros_like(added)]
        for theirs in told:
            kept = entering[-1] * theirs[..., -1, None, None]
            entering.append(kept + theirs[..., :-1].view(added.shape))
        if self.rank > 0:
            y = scan(*inputs, initial_state=entering[self.rank])
        return y, entering[-1]

    def keys_and_values(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, total, nheads_kv, headdim) of the whole sequence, from this rank's."""
        lengths = [stop - start for start, stop in pairwise(self.bounds)]
        own = k.new_zeros(2, k.shape[0], max(lengths), *k.shape[2:])
        own[:, :, : k.shape[1]] = torch.stack([k, v])
        everyones = torch.cat(
            [theirs[:, :, :length] for theirs, length in zip(gather(own, self.group), lengths, strict=True)], dim=2
        )
        return everyones[0], everyones[1]


def cut_sequence(length: int, ranks: int, *, unit: int, ratio: float) -> tuple[int, ...]:
    """Bounds of parts that cost the same, where a token costs 1 and `ratio` for each token before it.

    Args:
        length: tokens.
        ranks: parts, none of them empty.
        unit: bounds are multiples of it.
        ratio: what attending to one earlier token costs, of what everything else of a token does.

    Raises:
        ValueError: fewer units than ranks.
    """
    if length <= (ranks - 1) * unit:
        what = "tokens" if unit == 1 else f"chunks of {unit}"
        raise ValueError(f"token_ids: seqlen must be at least {ranks} {what}, one for each rank, got {length} tokens")
    bounds = [0]
    for rank in range(1, ranks):
        cost = (length + ratio * length**2 / 2) * rank / ranks
        even = cost if ratio == 0.0 else (-1 + (1 + 2 * ratio * cost) ** 0.5) / ratio
        least, most = bounds[-1] + unit, (-(-length // unit) - ranks + rank) * unit
        bounds.append(min(max(int(even / unit + 0.5) * unit, least), most))
    return (*bounds, length)
