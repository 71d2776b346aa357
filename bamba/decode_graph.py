"""A decode step as one CUDA graph: captured once for a batch, replayed for every token."""

from collections.abc import Callable

import torch
from torch import Tensor

from bamba.cache import Cache
from bamba.model import Bamba


def decoding(model: Bamba, *, batch: int, max_len: int, cuda_graph: bool) -> tuple[Cache, Callable[[Tensor], Tensor]]:
    """An empty cache, and what appends a token (batch, 1) to each of its sequences and returns the next one's logits.

    Raises:
        ValueError: as :class:`DecodeGraph`, where a `cuda_graph` is to be replayed.
    """
    if cuda_graph:
        graph = DecodeGraph(model, batch=batch, max_len=max_len)
        return graph.cache, graph.step
    cache = model.new_cache(batch=batch, max_len=max_len)
    return cache, lambda token_ids: model(token_ids, cache)


class DecodeGraph:
    """One decode step of a model on a cache of its own, launched by the host as a whole.

    The cache is used as any: prefill into it by the model, then call :meth:`step` once a token. Not for a model whose
    modules do work on the host in between, as some adapters' do.

    Args:
        model: what predicts, on a CUDA device; its weights must not change, nor where they are.
        batch: sequences.
        max_len: the most tokens a sequence can reach.

    Attributes:
        cache: the memory, empty.

    Raises:
        ValueError: a model that is not on a CUDA device, or batch or max_len below 1.
    """

    def __init__(self, model: Bamba, *, batch: int, max_len: int) -> None:
        if model.device.type != "cuda":
            raise ValueError(f"model must be on a CUDA device, got {model.device}")
        self.cache = model.new_cache(batch=batch, max_len=max_len)
        self._token_ids = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.device(model.device):
            # Once outside of the graph, where kernels are compiled and libraries choose; on a stream of its own, as
            # what the capture makes must not depend on what others do.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                model(self._token_ids, self.cache)
                self.cache.reset()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._logits: Tensor = model(self._token_ids, self.cache)
            self.cache.reset()

    def step(self, token_ids: Tensor) -> Tensor:
        """Append a token to each sequence and return the logits of the next.

        Args:
            token_ids: (batch, 1), int64 or int32, on the model's device.

        Returns:
            (batch, 1, vocab_size), in memory that the next step writes again.

        Raises:
            ValueError: another shape, or no room in the cache.
        """
        if token_ids.shape != self._token_ids.shape:
            raise ValueError(
                f"token_ids must be (batch, 1) {tuple(self._token_ids.shape)}, got {tuple(token_ids.shape)}"
            )
        counts = (1,) * self.cache.batch
        self.cache.expect_room(counts)
        self._token_ids.copy_(token_ids)
        self._graph.replay()
        self.cache.host_lengths = [held + 1 for held in self.cache.host_lengths]
        return self._logits
