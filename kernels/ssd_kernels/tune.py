"""Search this device's launch configurations of the operators beside the scan.

Each candidate is compiled, held to fp64 and timed; the fastest that is right goes into the table that ships with the
package, under this device's class. Sizes are Bamba-9B's unless given. Nothing is searched for when an operator is
called, so an operator runs the same from its first call on.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from ssd_kernels.portable.pinned import FILE, Entry, device_class, imposed, store
from ssd_kernels.registry import get_op
from ssd_kernels.tune_problems import Problem, all_problems

# Relative error, Frobenius: half a unit in bf16's last place is 1.7e-3 of a result; a fault is far beyond twice that.
ERRORS = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}
REPLAYS = 11
CALLS = 8  # of a replay


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of a candidate."""

    entry: Entry
    microseconds: float | None = None
    fault: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--only", action="append", metavar="OPERATOR", help="an operator's name; may be repeated")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=8192, help="of a prefill (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="of a decode step (%(default)s)")
    parser.add_argument("--output", type=Path, default=FILE, help="the table (the package's own)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Search, print a table and write the file."""
    if not torch.cuda.is_available():
        raise RuntimeError("tune needs a GPU to measure on, got none")
    problems = [each for each in all_problems(args.tokens, args.batch) if not args.only or each.operator in args.only]
    if not problems:
        raise ValueError(f"--only must name one of {[*dict.fromkeys(p.operator for p in all_problems(1, 1))]}")
    table = Table("operator", "sizes", "configuration", "µs", "pinned, µs", "tried", "faults", title=device_class())
    found: dict[str, list[Entry]] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("candidates", total=sum(len(problem.candidates) for problem in problems))
        for problem in problems:
            trials = search(problem, getattr(torch, args.dtype), measure, lambda: progress.advance(task))
            best = fastest(trials)
            (before,) = search(replace(problem, candidates=[{}]), getattr(torch, args.dtype), measure)
            faults = [trial for trial in trials if trial.fault]
            row = (problem.operator, str(problem.sizes), describe(best.entry), f"{best.microseconds:.1f}")
            pinned = f"{before.microseconds:.1f}" if before.microseconds else before.fault
            table.add_row(*row, pinned, str(len(trials)), str(len(faults)))
            for trial in faults:
                progress.console.print(f"{problem.operator}: {describe(trial.entry)}: {trial.fault}")
            found.setdefault(problem.operator, []).append({"sizes": list(problem.sizes), **best.entry})
    console.print(table)
    store(found, args.output)
    console.print(f"written: {args.output}")


def search(
    problem: Problem, dtype: torch.dtype, measure: Callable[[Callable[[], Any]], float],
    advance: Callable[[], None] = lambda: None,
) -> list[Trial]:  # fmt: skip
    """Try every candidate: hold it to fp64, then measure it. An empty candidate is what is pinned now."""
    function = get_op(problem.operator, "triton")
    exact = _outputs(get_op(problem.operator, "torch"), _upcast(problem.make(dtype)))
    trials = []
    for entry in problem.candidates:
        try:
            trials.append(_try(problem, entry, function, exact, dtype, measure))
        except Exception as error:  # a compiler's: whatever it is, this candidate is none
            trials.append(Trial(entry=entry, fault=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"))
        advance()
    return trials


def fastest(trials: list[Trial]) -> Trial:
    """The best of those that are right.

    Raises:
        RuntimeError: none is.
    """
    right = [trial for trial in trials if trial.microseconds is not None]
    if not right:
        raise RuntimeError(f"no candidate is right: {trials[0].fault if trials else 'there is none'}")
    return min(right, key=lambda trial: trial.microseconds or 0.0)


def measure(call: Callable[[], Any]) -> float:
    """Microseconds a call, the median of replays of a CUDA graph of several."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    samples = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(stop) * 1e3 / CALLS)
    return float(statistics.median(samples[1:]))


def describe(entry: Entry) -> str:
    """A configuration in a line."""
    if not entry:
        return "as pinned"
    return ", ".join(f"{name}={value}" for name, value in {**entry["block"], "num_warps": entry["num_warps"]}.items())


def _try(
    problem: Problem, entry: Entry, function: Callable[..., Any], exact: list[Tensor], dtype: torch.dtype,
    measure: Callable[[Callable[[], Any]], float],
) -> Trial:  # fmt: skip
    with imposed(problem.operator, entry) if entry else nullcontext():
        for actual, expected in zip(_outputs(function, problem.make(dtype)), exact, strict=True):
            error = float((actual.double() - expected).norm() / expected.norm())
            if not error <= ERRORS[dtype]:
                return Trial(entry=entry, fault=f"relative error {error:.1e}, at most {ERRORS[dtype]:.1e}")
        inputs = problem.make(dtype)
        return Trial(entry=entry, microseconds=measure(lambda: function(**inputs)))


def _outputs(function: Callable[..., Any], inputs: dict[str, Any]) -> list[Tensor]:
    """The result, and what is updated in place."""
    return [function(**inputs), *(inputs[name] for name in ("state", "window") if name in inputs)]


def _upcast(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()}
