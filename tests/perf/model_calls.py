"""What the model's benchmarks call and count: a prefill, a decode step, the weights and bytes of each."""

import torch
from torch import Tensor, nn

from bamba import Bamba, BambaConfig
from bamba.cache import AttentionCache, Cache
from tests.perf.problems import DEVICE


def random_tokens(config: BambaConfig, batch: int, seqlen: int) -> Tensor:
    """(batch, seqlen) token ids of a fixed seed."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    return torch.randint(config.vocab_size, (batch, seqlen), generator=generator, device=DEVICE)


def prefill(model: Bamba, token_ids: Tensor, cache: Cache) -> Tensor:
    """The logits after the last token of a prompt, into a cache that is emptied first."""
    cache.reset()
    return model(token_ids, cache, logits_to_keep=1)


def decode(model: Bamba, token_ids: Tensor, cache: Cache, held: int) -> Tensor:
    """The logits after one more token, always of the position `held`."""
    cache.length = held
    cache.position.fill_(held)
    return model(token_ids, cache)


def matrix_weights(model: Bamba) -> int:
    """Weights that every token is multiplied with; of a prompt, logits are computed of the last token only."""
    linear = (module for module in model.model.modules() if isinstance(module, nn.Linear))
    return sum(module.weight.numel() for module in linear)


def decode_bytes(model: Bamba, cache: Cache, held: int) -> int:
    """Bytes that a step cannot do without: weights read, states read and written, the tokens' keys and values read."""
    weights = (matrix_weights(model) + model.lm_head.weight.numel()) * model.dtype.itemsize
    attention = sum(tensor.nbytes for layer in cache.layers if isinstance(layer, AttentionCache) for tensor in layer)
    return weights + 2 * (cache.nbytes - attention) + attention * held // cache.max_len
