"""How much of a state each layer of a model forgets within a chunk.

A chunk whose decay is at most 2^200 can be computed with its decays factorised; beyond, only exactly, which takes
longer. In octaves, the decay of a chunk is -log2 of what is left of the state that entered it:

    sum of softplus(dt + dt_bias) * exp(A_log) over its tokens / log 2

Without tokens, dt, which depends on them, is taken as zero: one value for each head. With tokens the model runs, and
there is a value for each head and chunk. A checkpoint is a folder of Bamba's in the layout of transformers.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssd_kernels.defaults import ssd
from ssd_kernels.interface import discretise

FACTORISED = 200  # octaves
QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}

_recorded: list[dict[str, Any]] = []


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--chunk-size", type=int, metavar="TOKENS", help="tokens in a chunk; the model's by default")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--tokens", type=int, metavar="N", help="run the model on N random tokens")
    tokens.add_argument("--token-ids", type=Path, metavar="FILE", help="run the model on the numbers in this text file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Print the distribution of each layer and of all."""
    from bamba.checkpoint import read_config  # the model's package, which this one does without otherwise

    config = read_config(args.checkpoint)
    chunk_size = config.ssm_chunk_size if args.chunk_size is None else args.chunk_size
    if chunk_size < 1:
        raise ValueError(f"--chunk-size must be at least 1, got {chunk_size}")
    ids = _token_ids(args, config.vocab_size)
    if ids is None:
        layers = dict(_of_parameters(args.checkpoint, config.ssm_dt_limit, chunk_size))
        what = "dt taken as zero"
    else:
        layers = _of_tokens(args.checkpoint, ids, chunk_size, args.device)
        what = f"{ids.numel()} tokens"
    if not layers:
        raise ValueError(f"checkpoint {args.checkpoint} has no state-space layer")
    table = Table(title=f"decay of a chunk of {chunk_size} tokens in octaves, {what}")
    for heading in ("layer", *QUANTILES, f"beyond 2^{FACTORISED}"):
        table.add_column(heading, justify="right")
    every = torch.cat([octaves.flatten() for octaves in layers.values()])
    for name, octaves in [*layers.items(), ("all", every)]:
        # Not torch.quantile, which refuses more than 16 million.
        ordered = octaves.flatten().sort().values
        at = [ordered[math.ceil(quantile * len(ordered)) - 1] for quantile in QUANTILES.values()]
        share = (ordered > FACTORISED).double().mean()
        table.add_row(str(name), *(f"{value:.1f}" for value in at), f"{share:.2%}")
    console.print(table)


def chunk_decays(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float], chunk_size: int
) -> Tensor:
    """The decays of the chunks of a call of :class:`ssd_kernels.interface.SSD`, (batch, nchunks, nheads) in octaves."""
    step = discretise(dt, dt_bias, dt_softplus, dt_limit, torch.float64)
    step = torch.nn.functional.pad(step, (0, 0, 0, -step.shape[1] % chunk_size))
    octaves: Tensor = step.unflatten(1, (-1, chunk_size)).sum(2) * -A.double() / math.log(2)
    return octaves


def recording_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **options: Any) -> Any:
    """The default scan; the command looks at what it was given."""
    kept = {name: options[name] for name in ("dt_bias", "dt_softplus", "dt_limit")}
    _recorded.append({"dt": dt.detach(), "A": A.detach(), **kept})
    return ssd(x, dt, A, B, C, **options)


def _of_parameters(folder: Path, dt_limit: tuple[float, float], chunk_size: int) -> Iterator[tuple[int, Tensor]]:
    from bamba.checkpoint_files import find_tensors, read_tensor

    stored = find_tensors(folder)
    names = {int(name.split(".")[2]): name for name in stored if name.endswith(".mamba.A_log")}
    for layer, name in sorted(names.items()):
        other = name.replace("A_log", "dt_bias")
        A, bias = -read_tensor(name, stored[name]).double().exp(), read_tensor(other, stored[other])
        dt = torch.zeros(1, chunk_size, len(A))
        yield layer, chunk_decays(dt, A, bias, True, dt_limit, chunk_size)


def _of_tokens(folder: Path, ids: Tensor, chunk_size: int, device: str) -> dict[int, Tensor]:
    from bamba import load_checkpoint

    model = load_checkpoint(folder, ssm=f"{__name__}:{recording_ssd.__name__}", device=device)
    _recorded.clear()
    with torch.inference_mode():
        model(ids.to(device)[None])
    layers = [layer for layer in range(model.config.num_layers) if layer not in model.config.attn_layers]
    found = {
        layer: chunk_decays(**call, chunk_size=chunk_size).cpu() for layer, call in zip(layers, _recorded, strict=True)
    }
    _recorded.clear()
    return found


def _token_ids(args: argparse.Namespace, vocab_size: int) -> Tensor | None:
    if args.tokens is not None:
        if args.tokens < 1:
            raise ValueError(f"--tokens must be at least 1, got {args.tokens}")
        return torch.randint(vocab_size, (args.tokens,), generator=torch.Generator().manual_seed(0))
    if args.token_ids is None:
        return None
    words = args.token_ids.read_text().replace(",", " ").split()
    wrong = [word for word in words if not word.isdecimal() or int(word) >= vocab_size]
    if wrong or not words:
        found = repr(wrong[0]) if wrong else "none"
        raise ValueError(f"--token-ids: {args.token_ids} must hold numbers from 0 to {vocab_size - 1}, got {found}")
    return torch.tensor([int(word) for word in words])
