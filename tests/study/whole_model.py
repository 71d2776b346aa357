"""What the studies of the whole model share: models by depth and variant on one set of weights, and the work of a call.

A GPU takes Bamba-9B's shapes in bf16, 4 layers of them and all 32; a CPU a model of the same build, small enough.
"""

import functools
from collections.abc import Sequence
from itertools import chain

from bamba import Bamba, BambaConfig
from bamba.cache import AttentionCache, Cache, SSMCache
from bamba.config import PRESETS
from tests.perf.problems import DEVICE, DTYPE, MODEL, MODELS, ON_GPU

# The prior study's three, in its names: a scan in plain torch, one in Triton, and chunks that know nothing of another.
VARIANTS = {
    "default": {"ssm": "chunked", "carry": "all"},
    "optimized": {"ssm": "auto", "carry": "all"},
    "independent": {"ssm": "auto", "carry": "none"},
}
DEPTHS = {4: MODELS[MODEL]} | ({32: PRESETS["bamba-9b"]} if ON_GPU else {})


@functools.lru_cache(maxsize=1)
def weights(config: BambaConfig) -> Bamba:
    """The model of a configuration with the random weights that all its variants share."""
    return Bamba(config, device=DEVICE, dtype=DTYPE).eval()


def sharing(model: Bamba, *, ssm: str = "auto", carry: str = "all") -> Bamba:
    """Another model of the same weights, no copy."""
    other = Bamba(model.config, ssm=ssm, carry=carry, device="meta", dtype=model.dtype).eval()
    other.load_state_dict(model.state_dict(), assign=True)
    return other.to(model.device)


def weight_bytes(model: Bamba) -> int:
    """Bytes of the weights that a call reads once: all but the embedding, of which it reads a row for each token."""
    embedding = 0 if model.config.tie_embeddings else model.model.embed_tokens.weight.nbytes
    return sum(parameter.nbytes for parameter in model.parameters()) - embedding


def step_bytes(model: Bamba, cache: Cache, held: int) -> int:
    """Bytes that a decode step of one sequence has to move after `held` tokens.

    The weights once; states and windows read and written; keys and values of the tokens held, read, and of the new one,
    written.
    """
    states = chain.from_iterable(layer for layer in cache.layers if isinstance(layer, SSMCache))
    attended = chain.from_iterable(layer for layer in cache.layers if isinstance(layer, AttentionCache))
    per_token = sum(tensor.nbytes for tensor in attended) // (cache.batch * cache.max_len)
    return weight_bytes(model) + 2 * sum(tensor.nbytes for tensor in states) + per_token * (held + 1)


def evenly_spaced(count: int, of: int) -> Sequence[int]:
    """So many of the numbers 0 to `of` - 1, the first and the last among them, and their mean that of all.

    Raises:
        ValueError: fewer than two, or more than there are.
    """
    if not 2 <= count <= of:
        raise ValueError(f"count must be in [2, {of}], got {count}")
    return [round(i * (of - 1) / (count - 1)) for i in range(count)]
