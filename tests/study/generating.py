"""A prompt and the tokens after it by the host's clock, which is what a user waits: with a cache, and without one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bamba import Bamba
from bamba.bench import now
from bamba.cache import Cache


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """One round; from an idle device to an idle device."""

    first: float  # until the first new token
    all: float  # until the last of those that were timed, the first included


@torch.inference_mode()
def with_cache(
    model: Bamba, prompt: Tensor, new_tokens: int, cache: Cache, step: Callable[[Tensor], Tensor]
) -> Seconds:
    """Prefill of (1, seqlen) ids, then `new_tokens` - 1 steps, each with the likeliest token after the one before."""
    cache.reset()
    start = now(model.device)
    last = model(prompt, cache, logits_to_keep=1).argmax(dim=-1)
    first = now(model.device)
    for _ in range(new_tokens - 1):
        last = step(last).argmax(dim=-1)
    return Seconds(first=first - start, all=now(model.device) - start)


@torch.inference_mode()
def without_cache(model: Bamba, token_ids: Tensor, prompt: int, new: Sequence[int]) -> Seconds:
    """New tokens by number, each from all (1, prompt + number) ids before it, from the prompt on.

    Which tokens follow the prompt does not change what they cost: they are given, not generated.
    """
    start = now(model.device)
    first = start
    for i, number in enumerate(new):
        model(token_ids[:, : prompt + number], logits_to_keep=1).argmax(dim=-1)
        if i == 0:
            first = now(model.device)
    return Seconds(first=first - start, all=now(model.device) - start)
