"""torch.compile's modes on the model, and what each took: seconds until the first result, graph breaks, recompiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from bamba import Bamba
from bamba.bench import now
from bamba.decode_graph import decoding
from kernelgate import cuda

EAGER, OURS = "eager", "CUDA graph, ours"
# What torch.compile is given. Epilogue fusion and shape padding are on in all of inductor's modes (torch 2.11 to 2.13),
# so that the prior study's rows with the one and with the other are one here; those without show what they buy.
MODES: dict[str, dict[str, Any]] = {
    EAGER: {},
    OURS: {},
    "default": {"mode": "default"},
    "default, no epilogue fusion": {"options": {"epilogue_fusion": False}},
    "default, no shape padding": {"options": {"shape_padding": False}},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "max-autotune": {"mode": "max-autotune"},
    "max-autotune, no CUDA graphs": {"mode": "max-autotune-no-cudagraphs"},
}
POSITION, FURTHER = 256, 64  # of the decode step, and how many more the cache has room for

Call = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A call that is ready to be timed, and what it took to make it."""

    call: Call
    first: Tensor  # the logits of the first call
    ready_s: float  # until they were there: compiling, tuning and capturing included
    graph_breaks: int
    recompiles: int  # over the other lengths or positions


def prepare_prefill(model: Bamba, mode: str, token_ids: Tensor) -> Prepared:
    """The logits after the last of (1, seqlen) tokens, into an empty cache; three other lengths count recompiles."""
    _compile(model, mode)
    seqlen = token_ids.shape[1]
    cache = model.new_cache(batch=1, max_len=seqlen)

    def prefill(length: int) -> Tensor:
        cache.length = 0
        cache.lengths.zero_()
        return model(token_ids[:, :length], cache, logits_to_keep=1)

    others = [seqlen // 2, seqlen - 3, seqlen * 3 // 4]
    make = (lambda: cuda.capture(lambda: prefill(seqlen), token_ids.device)) if mode == OURS else None
    return _prepared(lambda: prefill(seqlen), [lambda n=n: prefill(n) for n in others], make, token_ids.device)


def prepare_decode(model: Bamba, mode: str, token_ids: Tensor) -> Prepared:
    """The logits after one more token than POSITION, of (1, POSITION + 1) ids; three other positions count recompiles.

    Each call moves the state on, but for the first, whose logits are those of the tokens.
    """
    _compile(model, mode)
    cache, decode = decoding(model, batch=1, max_len=POSITION + FURTHER, cuda_graph=mode == OURS)
    with torch.compiler.set_stance("force_eager"):
        model(token_ids[:, :POSITION], cache, logits_to_keep=1)
    last = token_ids[:, POSITION:]

    def step(position: int) -> Tensor:
        cache.length = position
        cache.lengths.fill_(position)
        return decode(last)

    return _prepared(
        lambda: step(POSITION), [lambda n=n: step(POSITION + n) for n in (1, 7, 50)], None, token_ids.device
    )


def _compile(model: Bamba, mode: str) -> None:
    """As the mode says; caches are made afterwards."""
    torch._dynamo.reset()
    counters.clear()
    if mode not in (EAGER, OURS):
        model.compile(**MODES[mode])


def _prepared(call: Call, others: Sequence[Call], make: Callable[[], Call] | None, device: torch.device) -> Prepared:
    start = now(device)
    if make is not None:
        call = make()
    first = call().clone()
    ready_s = now(device) - start
    graphs = counters["stats"]["unique_graphs"]
    for other in others:
        other()
    return Prepared(
        call=call,
        first=first,
        ready_s=ready_s,
        graph_breaks=sum(counters["graph_break"].values()),
        recompiles=counters["stats"]["unique_graphs"] - graphs,
    )
