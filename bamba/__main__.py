"""`python -m bamba`: what a model is made of, what it generates, and how fast it runs."""

import argparse
import dataclasses
import json
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import ssd_kernels
from bamba.bench import bench, now
from bamba.cache import Cache
from bamba.checkpoint import load_checkpoint, read_config
from bamba.config import PRESETS, BambaConfig
from bamba.generate import stream, until_stop
from bamba.model import Bamba
from bamba.registry import get_model

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PARTS = {  # part of a parameter's name → row of the table
    "embed_tokens": "embedding",
    "lm_head": "logits",
    "mamba": "Mamba-2 mixers",
    "self_attn": "attention",
    "feed_forward": "MLPs",
    "layernorm": "block and final norms",
}
_MODEL = f"one of {', '.join(PRESETS)}, or a checkpoint folder"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    try:
        _run(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        parser.error(str(error))
    return 0


def _run(args: argparse.Namespace) -> None:
    """The command, by one process, or by all that torchrun has started, of which the first prints."""
    args.mesh = None
    by_heads, by_tokens = (getattr(args, name, False) for name in ("tensor_parallel", "sequence_parallel"))
    if by_heads and by_tokens:
        raise ValueError("--tensor-parallel and --sequence-parallel: expected at most one of them, got both")
    if not (by_heads or by_tokens):
        args.command(args, Console())
        return
    from bamba.parallel.processes import ranks

    with ranks(torch.device(_device(args)).type) as args.mesh:
        args.command(args, Console(quiet=args.mesh.get_rank() != 0))


def info(args: argparse.Namespace, console: Console) -> None:
    """Print the parameters of a model by part, and what a sequence costs in cache; allocates no weights."""
    dtype = _DTYPES[args.dtype]
    config = BambaConfig.preset(args.model) if args.model in PRESETS else read_config(Path(args.model))
    model = Bamba(config, device="meta", dtype=dtype)
    count: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = next(row for key, row in _PARTS.items() if key in name)
        count[part] += parameter.numel()
        nbytes[part] += parameter.nbytes
    attention = f"attention at {', '.join(map(str, config.attn_layers))}" if config.attn_layers else "no attention"
    console.print(f"{args.model}: {config.num_layers} layers, {attention}; {args.dtype}")
    table = Table()
    for heading in ("part", "parameters", "MiB"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for row in _PARTS.values():
        table.add_row(row, f"{count[row]:,}", _mebibytes(nbytes[row]))
    table.add_section()
    table.add_row("total", f"{count.total():,}", _mebibytes(nbytes.total()))
    console.print(table)
    cache = Cache(config, batch=1, max_len=args.length, device="meta", dtype=dtype)
    console.print(f"cache of one sequence of {args.length:,} tokens: {_mebibytes(cache.nbytes)} MiB")


def generate(args: argparse.Namespace, console: Console) -> None:
    """Print what a model makes of prompts, and how fast."""
    model = _build_model(args)
    if args.prompt_ids is None:
        drawn = torch.Generator().manual_seed(args.seed)
        prompts = [torch.randint(model.config.vocab_size, (args.prompt_length,), generator=drawn).to(model.device)]
    else:
        prompts = [torch.tensor(prompt, device=model.device) for prompt in args.prompt_ids]
    steps = stream(
        model,
        prompts,
        max_new_tokens=args.new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop_ids=args.stop_ids,
        pad_id=args.pad_id,
        seed=args.seed,
    )
    made, times = [], [now(model.device)]
    for next_ids in steps:
        times.append(now(model.device))
        made.append(next_ids)
    _print_run(args, model, console)
    for prompt, new_ids in zip(prompts, torch.cat(made, dim=1), strict=True):
        console.print(f"prompt:    {' '.join(map(str, prompt.tolist()))}")
        console.print(f"generated: {' '.join(map(str, until_stop(new_ids, args.stop_ids).tolist()))}")
    console.print(f"time to first token: {1e3 * (times[1] - times[0]):.2f} ms, first call of the process included")
    if len(made) > 1:
        console.print(f"then {(len(made) - 1) * len(prompts) / (times[-1] - times[1]):.1f} tokens/s")


def run_bench(args: argparse.Namespace, console: Console) -> None:
    """Print the median times of prefill and decode."""
    model = _build_model(args)
    result = bench(
        model,
        batch=args.batch,
        prompt_length=args.prompt_length,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        warmup=args.warmup,
        seed=args.seed,
        mesh=args.mesh if args.sequence_parallel else None,
    )
    _print_run(args, model, console)
    rounds = f"median of {args.repeats} rounds"
    console.print(f"batch {args.batch}, prompt {args.prompt_length}, then {args.new_tokens} tokens; {rounds}")
    table = Table()
    for heading in ("phase", "ms", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    table.add_row("prefill", f"{1e3 * result.prefill_s:.2f}", f"{result.prefill_tokens_per_s:,.1f}")
    table.add_row("decode, one token", f"{1e3 * result.decode_s:.2f}", f"{result.decode_tokens_per_s:,.1f}")
    console.print(table)
    peak = "not counted on this device" if result.peak_bytes is None else f"{_mebibytes(result.peak_bytes)} MiB"
    console.print(f"peak memory, weights included: {peak}")
    if args.json is not None and not console.quiet:
        facts = {"model": args.model, "dtype": str(model.dtype), "ranks": _ranks(args), "torch": torch.__version__}
        parallel = {"tensor_parallel": args.tensor_parallel, "sequence_parallel": args.sequence_parallel}
        args.json.write_text(json.dumps(facts | parallel | dataclasses.asdict(result), indent=2) + "\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bamba", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="info|generate|bench")

    parse_info = commands.add_parser("info", help=info.__doc__)
    parse_info.set_defaults(command=info)
    parse_info.add_argument("--model", type=_model, default="bamba-9b", help=_MODEL)
    parse_info.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    parse_info.add_argument("--length", type=int, default=4096, help="tokens of the sequence whose cache is counted")

    running = argparse.ArgumentParser(add_help=False)
    running.add_argument("--model", type=_model, default="tiny", help=f"{_MODEL}; a preset's weights are random")
    running.add_argument(
        "--ssm", default="auto", help=f"auto, one of {', '.join(ssd_kernels.names())}, or package.module:function"
    )
    running.add_argument("--carry", default="all", help="all: exact; none: independent chunks")
    running.add_argument("--device", default="auto", help="auto takes a GPU where there is one")
    running.add_argument("--dtype", choices=_DTYPES, help="by default that of a checkpoint, and float32 for a preset")
    running.add_argument("--seed", type=int, default=0, help="of random weights, a random prompt and the sampling")
    running.add_argument(
        "--tensor-parallel", action="store_true", help="the heads among the processes of torchrun, a GPU each"
    )
    running.add_argument("--prompt-length", type=int, default=16)
    running.add_argument("--new-tokens", type=int, default=16)

    parse_generate = commands.add_parser("generate", parents=[running], help=generate.__doc__)
    parse_generate.set_defaults(command=generate)
    parse_generate.add_argument(
        "--prompt-ids", type=int, nargs="+", action="append", metavar="ID",
        help="token ids, instead of random ones; once for each prompt of a batch",
    )  # fmt: skip
    parse_generate.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    parse_generate.add_argument("--top-k", type=int, help="sample from this many likeliest tokens")
    parse_generate.add_argument("--top-p", type=float, help="sample from the likeliest with this probability together")
    parse_generate.add_argument("--stop-ids", type=int, nargs="+", default=[], metavar="ID", help="tokens that end")
    parse_generate.add_argument("--pad-id", type=int, help="repeated after the end; the first of --stop-ids by default")

    parse_bench = commands.add_parser("bench", parents=[running], help=run_bench.__doc__)
    parse_bench.set_defaults(command=run_bench)
    parse_bench.add_argument("--batch", type=int, default=1)
    parse_bench.add_argument("--repeats", type=int, default=5)
    parse_bench.add_argument("--warmup", type=int, default=1)
    parse_bench.add_argument(
        "--sequence-parallel", action="store_true", help="the prompt among the processes of torchrun, a GPU each"
    )
    parse_bench.add_argument("--json", type=Path, metavar="FILE", help="write the times there too")
    return parser


def _model(name: str) -> str:
    """A value of --model."""
    if name not in PRESETS and not Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"must be {_MODEL}, got {name!r}")
    return name


def _build_model(args: argparse.Namespace) -> Bamba:
    dtype = None if args.dtype is None else _DTYPES[args.dtype]
    cut_among = args.mesh if args.tensor_parallel else None
    if args.model not in PRESETS:
        return load_checkpoint(
            args.model, ssm=args.ssm, carry=args.carry, device=_device(args), dtype=dtype, mesh=cut_among
        )
    model = get_model(args.model, ssm=args.ssm, carry=args.carry, device=_device(args), dtype=dtype)
    model.init_weights(args.seed)
    if cut_among is not None:
        from bamba.parallel.tensor import tensor_parallel

        tensor_parallel(model, cut_among)
    return model


def _device(args: argparse.Namespace) -> str:
    has_gpu = torch.cuda.is_available()
    if args.device.startswith("cuda") and not has_gpu:
        raise ValueError(f"--device: {args.device!r} needs a GPU that torch can use, got none")
    return ("cuda" if has_gpu else "cpu") if args.device == "auto" else args.device


def _ranks(args: argparse.Namespace) -> int:
    return 1 if args.mesh is None else args.mesh.size()


def _print_run(args: argparse.Namespace, model: Bamba, console: Console) -> None:
    name = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.machine()
    dtype = str(model.dtype).removeprefix("torch.")
    random = f" with random weights (seed {args.seed}): its output means nothing" if args.model in PRESETS else ""
    console.print(f"{args.model}{random}")
    console.print(f"ssm: asked for {args.ssm}, ran {model.ssm_in_use}; carry {model.carry}")
    console.print(f"device: asked for {args.device}, ran on {model.device} ({name}); {dtype}")
    if args.mesh is not None:
        console.print(f"{'heads' if args.tensor_parallel else 'prompt'} among {_ranks(args)} devices")


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.2f}"


if __name__ == "__main__":
    sys.exit(main())
