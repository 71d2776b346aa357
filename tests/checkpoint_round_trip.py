"""A large sharded checkpoint to disk and back, ours and transformers', each step in a process of its own.

    python -m tests.checkpoint_round_trip --gigabytes 2

Prints for each step its time and the most memory that the process gained over what it had before; fails unless every
tensor comes back bit for bit. Needs twice the size on disk. The suite does the same with shards of kilobytes.
"""

import argparse
import hashlib
import importlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import transformers
from torch import nn

from bamba import Bamba, BambaConfig, load_checkpoint, save_checkpoint

SHARD = "300MB"
# Full width; a vocabulary so small that no tensor is larger than a shard.
WIDE = BambaConfig.preset("bamba-9b").replace(vocab_size=32000)


class Step(NamedTuple):
    """What one process did."""

    seconds: float
    gained: int  # bytes: the peak of the resident set, less what was resident before
    digests: dict[str, str]  # of every tensor


def main() -> int:
    """Run all steps; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where to write; the folder for temporary files by default")
    args = parser.parse_args()
    config = sized(int(args.gigabytes * 1e9))
    nbytes = sum(p.nbytes for p in Bamba(config, device="meta", dtype=torch.bfloat16).parameters())
    print(f"{nbytes / 1e9:.2f} GB of weights in bfloat16, {config.num_layers} layers, shards of {SHARD}")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        ours, theirs = Path(name, "ours"), Path(name, "theirs")
        written = run("save_checkpoint", save_ours, ours, config)
        print(f"  {len(list(ours.glob('*.safetensors')))} shards")
        steps = [
            run("load_checkpoint", load_ours, ours),
            run("transformers loads it and saves it", through_theirs, ours, theirs),
            run("load_checkpoint of that", load_ours, theirs),
        ]
    same = all(step.digests == written.digests for step in steps)
    print(f"{len(written.digests)} tensors: {'the same bit for bit' if same else 'NOT THE SAME'} after every step")
    return 0 if same else 1


def sized(nbytes: int) -> BambaConfig:
    """The configuration with as many layers as reach `nbytes` in bfloat16; every third is attention."""
    for num_layers in range(2, 33):
        config = WIDE.replace(num_layers=num_layers, attn_layers=tuple(range(1, num_layers, 3)))
        if sum(p.nbytes for p in Bamba(config, device="meta", dtype=torch.bfloat16).parameters()) >= nbytes:
            break
    return config


def run(what: str, function: Callable[..., Step], *args: object) -> Step:
    """One step in a fresh process, so that its peak is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        step = pool.submit(function, *args).result()
    print(f"{what}: {step.seconds:.1f} s, at most {step.gained / 1e9:.2f} GB more than before")
    return step


def save_ours(folder: Path, config: BambaConfig) -> Step:
    model = Bamba(config, dtype=torch.bfloat16)
    for parameter in model.parameters():  # transformers rounds to bfloat16 what is kept in fp32 here
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    return measure(lambda: save_checkpoint(model, folder, max_shard_size=SHARD) or model)


def load_ours(folder: Path) -> Step:
    return measure(lambda: load_checkpoint(folder))


def through_theirs(source: Path, target: Path) -> Step:
    def convert() -> nn.Module:
        model = transformers.BambaForCausalLM.from_pretrained(source)
        model.save_pretrained(target, max_shard_size=SHARD)
        return model

    return measure(convert)


def measure(make: Callable[[], nn.Module]) -> Step:
    importlib.import_module("transformers.models.bamba.modeling_bamba")  # not to be counted as gained
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    model = make()
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    digests = {
        name: hashlib.blake2b(p.detach().float().view(torch.uint8).numpy().data).hexdigest()
        for name, p in model.named_parameters()
    }
    return Step(seconds, max(0, peak - before), digests)


if __name__ == "__main__":
    sys.exit(main())
