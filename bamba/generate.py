"""Text generation from token ids: greedy or sampled, one token at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bamba.model import Bamba


def generate(
    model: Bamba,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue prompts by `max_new_tokens` tokens.

    Args:
        model: what predicts.
        prompt_ids: (batch, seqlen), int64 or int32, on the model's device; prompts of equal length.
        max_new_tokens: how many tokens to append.
        temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
        seed: of the sampling; the same seed gives the same tokens. Drawn afresh by default.
        use_cache: remember the past; otherwise every token recomputes the whole sequence.

    Returns:
        (batch, seqlen + max_new_tokens), int64: the prompts and what follows.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, a size or temperature out of range, a wrong device.
        TypeError: prompt ids that are not integers.
    """
    new_ids = stream(
        model,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        use_cache=use_cache,
    )
    return torch.cat([prompt_ids.long(), *new_ids], dim=1)


def stream(
    model: Bamba,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield the new tokens of :func:`generate`, (batch, 1) each, as they come; checks its arguments at once."""
    _check_prompt(model, prompt_ids)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    generator = torch.Generator(model.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return _stream(model, prompt_ids.long(), max_new_tokens, temperature, generator, use_cache)


@torch.inference_mode()
def _stream(
    model: Bamba, ids: Tensor, max_new_tokens: int, temperature: float, generator: torch.Generator, use_cache: bool
) -> Iterator[Tensor]:
    # The last new token is never fed back, so the cache needs no place for it.
    cache = model.new_cache(batch=ids.shape[0], max_len=ids.shape[1] + max_new_tokens - 1) if use_cache else None
    for _ in range(max_new_tokens):
        logits = model(ids, cache, logits_to_keep=1)[:, -1]
        next_ids = _choose(logits, temperature, generator)
        yield next_ids
        ids = next_ids if use_cache else torch.cat([ids, next_ids], dim=1)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token (batch, 1) from logits (batch, vocab_size)."""
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)


def _check_prompt(model: Bamba, prompt_ids: Tensor) -> None:
    if prompt_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"prompt_ids: dtype must be int64 or int32, got {prompt_ids.dtype}")
    if prompt_ids.ndim != 2 or prompt_ids.numel() == 0:
        raise ValueError(f"prompt_ids must have shape (batch, seqlen), neither 0, got {tuple(prompt_ids.shape)}")
    if prompt_ids.device != model.device:
        raise ValueError(f"prompt_ids must be on the model's device, {model.device}, got {prompt_ids.device}")
    low, high = prompt_ids.aminmax()
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(f"prompt_ids must be in [0, {model.config.vocab_size}), got {int(low)} to {int(high)}")
