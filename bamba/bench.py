"""Wall-clock times of a model's prefill and decode, the median over repeats, taken with the device idle."""

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from bamba.decode_graph import decoding
from bamba.model import Bamba

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What :func:`bench` measured; times in seconds, memory in bytes."""

    batch: int
    prompt_length: int
    new_tokens: int
    prefill_s: float  # median time of the prompt, up to the logits of its last token
    decode_s: float  # median over repeats of the mean time of one further token
    peak_bytes: int | None  # the most memory allocated at once, weights included; None where torch does not count it

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens of the whole batch taken in a second."""
        return self.batch * self.prompt_length / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens of the whole batch made in a second."""
        return self.batch / self.decode_s


@torch.inference_mode()
def bench(
    model: Bamba, *, batch: int, prompt_length: int, new_tokens: int, repeats: int, warmup: int = 1, seed: int = 0,
    cuda_graph: bool | None = None, mesh: "DeviceMesh | None" = None,
) -> BenchResult:  # fmt: skip
    """Time prompts of random tokens and the tokens after them, greedily chosen, with a cache.

    Args:
        model: what to time.
        batch: sequences at once.
        prompt_length: tokens of each prompt.
        new_tokens: tokens decoded after each prompt, one at a time.
        repeats: timed rounds, each of one prefill and `new_tokens` decode steps.
        warmup: rounds before, not timed.
        seed: of the prompt.
        cuda_graph: replay a captured decode step; on a GPU by default.
        mesh: devices that each take a part of the prompt, see :func:`bamba.parallel.sequence.prefill`, and then decode
            each by itself; every rank makes the same call.

    Raises:
        ValueError: a count below 1, a negative warmup, or a graph without a GPU.
    """
    counts = {"batch": batch, "prompt_length": prompt_length, "new_tokens": new_tokens, "repeats": repeats}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}")
    generator = torch.Generator(model.device).manual_seed(seed)
    prompt = torch.randint(model.config.vocab_size, (batch, prompt_length), generator=generator, device=model.device)
    on_gpu = model.device.type == "cuda"
    cache, step = decoding(
        model, batch=batch, max_len=prompt_length + new_tokens, cuda_graph=on_gpu if cuda_graph is None else cuda_graph
    )

    def prefill() -> Tensor:
        if mesh is None:
            return cast("Tensor", model(prompt, cache, logits_to_keep=1))
        from bamba.parallel import sequence

        return sequence.prefill(model, prompt, cache, mesh=mesh)

    prefill_s, decode_s = [], []
    for _ in range(warmup + repeats):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(model.device)
        cache.reset()
        if mesh is not None:
            torch.distributed.barrier(mesh.get_group())
        start = now(model.device)
        next_ids = prefill().argmax(dim=-1)
        prefilled = now(model.device)
        for _ in range(new_tokens):
            next_ids = step(next_ids).argmax(dim=-1)
        prefill_s.append(prefilled - start)
        decode_s.append((now(model.device) - prefilled) / new_tokens)
    return BenchResult(
        batch=batch,
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        prefill_s=statistics.median(prefill_s[warmup:]),
        decode_s=statistics.median(decode_s[warmup:]),
        peak_bytes=torch.cuda.max_memory_allocated(model.device) if on_gpu else None,
    )


def now(device: torch.device) -> float:
    """Wall-clock seconds, once the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
