"""A rank's part of a sequence: what its layers are told of the tokens before it, and tell the rank after it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch.distributed as dist
from torch import Tensor

from bamba.cache import AttentionCache, LayerCache

AHEAD = 16  # messages that the next rank has not taken yet, of some eight layers: more would only hold memory


@dataclass(frozen=True, kw_only=True)
class Part:
    """The tokens `bounds[rank]` to `bounds[rank + 1]` of a sequence; every rank has some.

    What a layer needs of earlier tokens comes from the rank before, and goes on to the rank after: nobody waits for a
    later rank, and a later rank is behind by what one layer does before it sends. Of three ranks or more, NCCL may have
    those between wait, as it takes a message only when the last one is gone. Every rank makes the same calls in the
    same order.
    """

    group: dist.ProcessGroup
    bounds: tuple[int, ...]  # (ranks + 1,), rising from 0 to the length of the sequence
    sent: deque[tuple[dist.Work, Tensor]] = field(default_factory=deque)

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

    def receive(self, message: Tensor) -> None:
        """Fill a contiguous tensor by what the rank before has sent next; the first rank leaves it as it is."""
        if self.rank > 0:
            dist.recv(message, group_src=self.rank - 1, group=self.group)

    def send(self, message: Tensor) -> None:
        """Tell the rank after this one, if there is one, without waiting for it: the message must stay as it is."""
        if self.rank == self.group.size() - 1:
            return
        if len(self.sent) == AHEAD:
            self.sent.popleft()[0].wait()
        message = message.contiguous()
        work = dist.isend(message, group_dst=self.rank + 1, group=self.group)
        self.sent.append((cast("dist.Work", work), message))

    def share(self, layers: Sequence[LayerCache]) -> None:
        """Give every rank the memory of the whole sequence, once each has that of the tokens up to its last.

        What was sent may be freed afterwards, also where there are no layers to share.
        """
        while self.sent:
            self.sent.popleft()[0].wait()
        last = self.group.size() - 1
        for layer in layers:
            if not isinstance(layer, AttentionCache):
                for tensor in layer:
                    dist.broadcast(tensor, group_src=last, group=self.group)
                continue
            for rank in range(1, last + 1):
                for tensor in layer:
                    theirs = tensor[:, :, self.bounds[rank] : self.bounds[rank + 1]]
                    message = theirs.contiguous()
                    dist.broadcast(message, group_src=rank, group=self.group)
                    theirs.copy_(message)


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
