"""Text generation from token ids: greedy or sampled, one token at a time, until a stop token or a number of tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from bamba.cache import Cache
from bamba.decode_graph import decoding
from bamba.model import Bamba
from bamba.packing import read_packing

ENOUGH_FOR_A_GRAPH = 16  # tokens; capturing takes about as long as four steps


@overload
def generate(model: Bamba, prompt_ids: Tensor, **options: Any) -> Tensor: ...
@overload
def generate(model: Bamba, prompt_ids: Sequence[Tensor], **options: Any) -> list[Tensor]: ...
def generate(model: Bamba, prompt_ids: Tensor | Sequence[Tensor], **options: Any) -> Tensor | list[Tensor]:
    """Continue prompts by up to `max_new_tokens` tokens each.

    Args:
        model: what predicts.
        prompt_ids: (batch, seqlen), int64 or int32, on the model's device; or a sequence of prompts of any lengths, one
            dimension each.
        options: as of :func:`stream`; `max_new_tokens` is required.

    Returns:
        Of a tensor, (batch, seqlen + new), int64: the prompts as they are, padding included, and what follows; new is
        `max_new_tokens`, or less where all rows have stopped before. After its stop token a row repeats `pad_id`.
        Of a sequence of prompts, a list of as many int64 tensors of one dimension: each prompt and what follows it, to
        its stop token and no further.

    Raises:
        ValueError, TypeError: as :func:`stream`.
    """
    steps = stream(model, prompt_ids, **options)
    if isinstance(prompt_ids, Tensor):
        return torch.cat([prompt_ids.long(), *steps], dim=1)
    new_ids = torch.cat(list(steps), dim=1)
    stop_ids = options.get("stop_ids", ())
    return [
        torch.cat([prompt.long(), until_stop(row, stop_ids)]) for prompt, row in zip(prompt_ids, new_ids, strict=True)
    ]


def stream(
    model: Bamba,
    prompt_ids: Tensor | Sequence[Tensor],
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Sequence[int] = (),
    pad_id: int | None = None,
    seed: int | None = None,
    use_cache: bool = True,
    cuda_graph: bool | None = None,
) -> Iterator[Tensor]:
    """Yield the new tokens of prompts as they come; checks its arguments at once.

    Args:
        model: what predicts.
        prompt_ids: (batch, seqlen), int64 or int32, on the model's device; or a sequence of prompts of any lengths, one
            dimension each.
        max_new_tokens: the most tokens to append to each prompt.
        attention_mask: (batch, seqlen), bool or integer, 0 where a tensor of prompts is padding, left or right.
        temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
        top_k: sample from this many likeliest tokens, and those as likely as the last of them.
        top_p: sample from the likeliest tokens, as few as have this probability together, of those that `top_k` left.
        stop_ids: tokens that end a sequence. With any, the host waits for each token, to end early.
        pad_id: what a sequence that has ended repeats while others go on; the first of `stop_ids` by default.
        seed: of the sampling; the same seed gives the same tokens. Drawn afresh by default.
        use_cache: remember the past; otherwise every token recomputes the whole sequence.
        cuda_graph: replay a captured step, see :class:`bamba.decode_graph.DecodeGraph`; by default on a GPU, where
            enough tokens are to be made that capturing it pays.

    Yields:
        (batch, 1), int64: the next token of each prompt. The stop token is yielded, and nothing after the last one.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, a mask with holes, an option out of range, a wrong
            device.
        TypeError: prompt ids, a mask or an option of the wrong type.
    """
    _expect_count("max_new_tokens", max_new_tokens)
    sampling = _Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    prompts = _read_prompts(model, prompt_ids, attention_mask)
    for token in stop_ids:
        _expect_token(model, "stop_ids", token)
    if pad_id is not None:
        _expect_token(model, "pad_id", pad_id)
    elif stop_ids:
        pad_id = stop_ids[0]
    generator = torch.Generator(model.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    on_gpu = model.device.type == "cuda"
    if cuda_graph and not (use_cache and on_gpu):
        raise ValueError(f"cuda_graph: expected a cache and a model on a CUDA device, got {use_cache=}, {model.device}")
    if cuda_graph is None:
        cuda_graph = use_cache and on_gpu and max_new_tokens >= ENOUGH_FOR_A_GRAPH
    return _stream(
        model, prompts, max_new_tokens, sampling, tuple(stop_ids), pad_id or 0, generator, use_cache, cuda_graph
    )


def until_stop(new_ids: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """The new tokens of one prompt, (new,), up to and including the first that is in `stop_ids`."""
    stops = torch.isin(new_ids, torch.tensor(stop_ids, dtype=new_ids.dtype, device=new_ids.device)).nonzero()
    return new_ids if len(stops) == 0 else new_ids[: int(stops[0]) + 1]


@dataclass(frozen=True, kw_only=True)
class _Sampling:
    """How a token is chosen from logits."""

    temperature: float
    top_k: int | None
    top_p: float | None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and at least 0, got {self.temperature}")
        if self.top_k is not None:
            _expect_count("top_k", self.top_k)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One token (batch, 1) from logits (batch, vocab_size)."""
        if self.temperature == 0.0:
            return logits.argmax(dim=-1, keepdim=True)
        return torch.multinomial(self.probabilities(logits), num_samples=1, generator=generator)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is sampled, (batch, vocab_size) in fp32."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -math.inf)
        probabilities = torch.softmax(logits, dim=-1)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
            enough = ordered.cumsum(dim=-1) - ordered >= self.top_p  # without this token
            probabilities = probabilities.scatter(-1, ids, ordered.masked_fill(enough, 0.0))
        return probabilities


@torch.inference_mode()
def _stream(
    model: Bamba,
    prompts: list[Tensor],
    max_new_tokens: int,
    sampling: _Sampling,
    stop_ids: tuple[int, ...],
    pad_id: int,
    generator: torch.Generator,
    use_cache: bool,
    cuda_graph: bool,
) -> Iterator[Tensor]:
    # The last new token is never fed back, so the cache needs no place for it.
    max_len = max(map(len, prompts)) + max_new_tokens - 1
    cache: Cache | None = None
    if use_cache:
        cache, step = decoding(model, batch=len(prompts), max_len=max_len, cuda_graph=cuda_graph)
    stops = torch.tensor(stop_ids, dtype=torch.int64, device=model.device)
    stopped = torch.zeros(len(prompts), 1, dtype=torch.bool, device=model.device)
    logits = _predict(model, prompts, cache)
    for made in range(1, max_new_tokens + 1):
        next_ids = sampling.choose(logits, generator)
        if stop_ids:
            next_ids = next_ids.masked_fill(stopped, pad_id)
            stopped = stopped | torch.isin(next_ids, stops)
        yield next_ids
        if made == max_new_tokens or (stop_ids and bool(stopped.all())):
            return
        if cache is None:
            prompts = [torch.cat([prompt, new]) for prompt, new in zip(prompts, next_ids, strict=True)]
            logits = _predict(model, prompts, cache)
        else:
            logits = step(next_ids)[:, -1]


def _predict(model: Bamba, sequences: list[Tensor], cache: Cache | None) -> Tensor:
    """The logits (batch, vocab_size) of the token after each sequence."""
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) == max(lengths):
        logits: Tensor = model(torch.stack(sequences), cache, logits_to_keep=1)
    else:
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        logits = model(torch.cat(sequences)[None], cache, cu_seqlens=cu_seqlens, logits_to_keep=1)
    return logits[:, -1]


def _read_prompts(model: Bamba, prompt_ids: Tensor | Sequence[Tensor], attention_mask: Tensor | None) -> list[Tensor]:
    """Each prompt without padding, (seqlen,) int64."""
    if isinstance(prompt_ids, Tensor):
        _check_prompt(model, "prompt_ids", prompt_ids, "(batch, seqlen)")
        packing = read_packing(prompt_ids, attention_mask, None)
        prompt_ids = prompt_ids.long()
        return list(prompt_ids if packing is None else packing.pack(prompt_ids)[0].split(packing.lengths))
    if attention_mask is not None:
        raise ValueError("attention_mask: expected none where prompt_ids is a sequence of prompts, got one")
    if len(prompt_ids) == 0:
        raise ValueError("prompt_ids must hold at least one prompt, got none")
    for row, prompt in enumerate(prompt_ids):
        _check_prompt(model, f"prompt_ids[{row}]", prompt, "(seqlen,)")
    return [prompt.long() for prompt in prompt_ids]


def _check_prompt(model: Bamba, name: str, prompt_ids: Tensor, meaning: str) -> None:
    if prompt_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: dtype must be int64 or int32, got {prompt_ids.dtype}")
    if prompt_ids.ndim != len(meaning.strip("(),").split(",")) or prompt_ids.numel() == 0:
        raise ValueError(f"{name} must have shape {meaning}, none of them 0, got {tuple(prompt_ids.shape)}")
    if prompt_ids.device != model.device:
        raise ValueError(f"{name} must be on the model's device, {model.device}, got {prompt_ids.device}")
    low, high = prompt_ids.aminmax()
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(f"{name} must be in [0, {model.config.vocab_size}), got {int(low)} to {int(high)}")


def _expect_token(model: Bamba, name: str, token: object) -> None:
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"{name}: a token must be an int, got {token!r}")
    if not 0 <= token < model.config.vocab_size:
        raise ValueError(f"{name} must be in [0, {model.config.vocab_size}), got {token}")


def _expect_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
