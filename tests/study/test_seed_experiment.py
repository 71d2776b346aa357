"""The prior study's grid and FMS's protocol, by the host's clock, on models of random weights in bf16.

A row is the median of rounds, with the shortest and the longest of them. Without a cache a token costs a prefill of all
before it, so that some of the tokens stand for all: evenly spaced ones, whose mean is that of all where the cost grows
with the length; how many is in the row, and nothing is scaled but by that number.
"""

import functools
import statistics

import pytest
import torch

from bamba.decode_graph import decoding
from kernelgate.ceilings import COPY, ceilings
from tests.perf.model_calls import random_tokens
from tests.perf.problems import DEVICE, ON_GPU
from tests.study.generating import with_cache, without_cache
from tests.study.whole_model import (
    DEPTHS,
    VARIANTS,
    evenly_spaced,
    sharing,
    step_bytes,
    weight_bytes,
    weights,
)

pytestmark = pytest.mark.study

CHUNK = 256 if ON_GPU else 16
PROMPTS = range(1, 10)  # chunks
NEW = 100 if ON_GPU else 10
# Tokens without a cache, of NEW, by layers. A length that a process meets first takes up to 65 ms more, at any depth.
TIMED = {4: 10, 32: 5} if ON_GPU else {4: 3}
FMS_PROMPT, FMS_NEW = (1024, 256) if ON_GPU else (64, 16)
ROUNDS = 3


@functools.lru_cache(maxsize=1)
def model_of(layers, variant):
    return sharing(weights(DEPTHS[layers]), **VARIANTS[variant])


@functools.lru_cache(maxsize=1)
def decoding_of(layers, variant):
    """One cache for all prompts, with room for the longest, as a server has it; steps by CUDA graph on a GPU."""
    with torch.inference_mode():
        room = max(PROMPTS[-1] * CHUNK + NEW, FMS_PROMPT + FMS_NEW)
        return decoding(model_of(layers, variant), batch=1, max_len=room, cuda_graph=ON_GPU)


@pytest.mark.benchmark(group="seed")
@pytest.mark.parametrize("chunks", PROMPTS)
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layers", DEPTHS)
def test_seed_grid(benchmark, layers, variant, cached, chunks):
    if cached:
        measure_cached(benchmark, layers, variant, chunks * CHUNK, NEW)
    else:
        measure_uncached(benchmark, layers, variant, chunks * CHUNK)


@pytest.mark.benchmark(group="fms")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layers", DEPTHS)
def test_fms_protocol(benchmark, layers, variant):
    measure_cached(benchmark, layers, variant, FMS_PROMPT, FMS_NEW)


def measure_cached(benchmark, layers, variant, prompt, new):
    model, (cache, step) = model_of(layers, variant), decoding_of(layers, variant)
    token_ids = random_tokens(model.config, 1, prompt)
    with_cache(model, token_ids, 2, cache, step)  # what a first prompt of this length makes torch allocate
    held = range(prompt, prompt + new - 1)
    moved = weight_bytes(model) + sum(step_bytes(model, cache, each) for each in held)
    measure(benchmark, model, lambda: with_cache(model, token_ids, new, cache, step), new, new, moved)


def measure_uncached(benchmark, layers, variant, prompt):
    model = model_of(layers, variant)
    numbers = evenly_spaced(TIMED[layers], NEW)
    token_ids = random_tokens(model.config, 1, prompt + NEW)
    without_cache(model, token_ids, prompt, numbers[:1])
    moved = len(numbers) * weight_bytes(model)
    measure(benchmark, model, lambda: without_cache(model, token_ids, prompt, numbers), len(numbers), NEW, moved)


def measure(benchmark, model, run, timed, new, moved):
    """Benchmark rounds of `run`; seconds in the row are those of `new` tokens, of which it takes `timed`."""
    rounds = []

    def setup():
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats(DEVICE)

    # The host's clock is that of a CPU's benchmark.
    benchmark.declare(device="cpu", tokens=timed, asked=model.ssm, ran=model.ssm_in_use)
    benchmark.pedantic(lambda: rounds.append(run()), setup=setup, rounds=ROUNDS)
    if not rounds:
        return
    numbers = spread("all_s", [each.all * new / timed for each in rounds])
    numbers |= spread("first_s", [each.first for each in rounds])
    later = [(each.all - each.first) / (timed - 1) for each in rounds]
    benchmark.extra_info["numbers"] = {
        **numbers, **spread("token_s", later), "timed_tokens": timed, "new_tokens": new,
        "moved": moved / statistics.median(each.all for each in rounds), "copy": ceilings(DEVICE)[COPY].typical,
        "peak_bytes": torch.cuda.max_memory_allocated(DEVICE) if ON_GPU else 0,
    }  # fmt: skip


def spread(name, values):
    """The median under the name, and the ends."""
    return {name: statistics.median(values), f"{name}:low": min(values), f"{name}:high": max(values)}
