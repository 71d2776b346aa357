"""Search this device's launch configurations of the scan and of the operators beside it.

Each candidate is compiled, held to fp64 and timed. The fastest that is right is timed once more, in turn with what is
taken now; where it is faster by 2 % or more it goes into the table that ships with the package, under this device's
class. Of the scan it overrides, for calls of just these sizes, what a rule would choose. Sizes are Bamba-9B's unless
given. Nothing is searched for when an operator is called, so an operator runs the same from its first call on.
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from torch import Tensor

from ssd_kernels.device import is_hopper
from ssd_kernels.portable.pinned import FILE, Entry, device_class, imposed, store
from ssd_kernels.registry import default_name, get_op
from ssd_kernels.tune_problems import Problem, device, linear_problems, operator_problems
from ssd_kernels.tune_scans import SHAPES, hopper_problems, portable_problems

# Relative error, Frobenius: half a unit in bf16's last place is 1.7e-3 of a result; a fault is far beyond twice that.
ERRORS = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}
REPLAYS = 21
FLUSHED_BYTES = 2**28
WORTHWHILE = 1.02  # a smaller gain is within what two searches differ by
TURNS = 5


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of a candidate."""

    entry: Entry
    microseconds: float | None = None
    fault: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--only", action="append", metavar="NAME", help="an operator or kernel; may be repeated")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tokens", type=_count, default=8192, help="of a prefill (%(default)s)")
    parser.add_argument("--batch", type=_count, default=64, help="of a decode step, but its projections (%(default)s)")
    scans = " ".join(f"{batch}x{seqlen}" for batch, seqlen in SHAPES)
    parser.add_argument(
        "--scan", action="append", type=_shape, metavar="BATCHxTOKENS", help=f"of a scan; may be repeated ({scans})"
    )
    parser.add_argument("--output", type=Path, default=FILE, help="the table (the package's own)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Search, print a table and write the file."""
    if not torch.cuda.is_available():
        raise RuntimeError("tune needs a GPU to measure on, got none")
    dtype = getattr(torch, args.dtype)
    everything = list(all_problems(args.tokens, args.batch, args.scan or SHAPES, dtype))
    problems = [
        problem for problem in everything
        if dtype in problem.dtypes and (not args.only or {problem.operator, problem.kernel} & {*args.only})
    ]  # fmt: skip
    if not problems:
        known = dict.fromkeys(name for problem in everything for name in (problem.operator, problem.kernel))
        raise ValueError(f"--only must name one of {[*known]} that takes {args.dtype} here, got {args.only}")
    headings = ("kernel", "sizes", "best", "µs", "now, µs", "gain", "tried", "faults")
    table = Table(*(Column(heading, overflow="fold") for heading in headings), title=device_class())
    found: dict[str, list[Entry]] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("candidates", total=sum(len(problem.candidates) for problem in problems))
        for problem in problems:
            trials = search(problem, dtype, measure, lambda: progress.advance(task))
            best = fastest(trials)
            now, then = in_turn(problem, dtype, measure, [{}, best.entry])
            faults = [trial for trial in trials if trial.fault]
            row = (problem.kernel, str(problem.sizes), describe(best.entry), f"{then:.1f}", f"{now:.1f}")
            table.add_row(*row, f"{now / then - 1:+.1%}", str(len(trials)), str(len(faults)))
            for trial in faults:
                progress.console.print(f"{problem.kernel}: {describe(trial.entry)}: {trial.fault}")
            if now / then >= WORTHWHILE:
                found.setdefault(problem.kernel, []).append({"sizes": list(problem.sizes), **best.entry})
    console.print(table)
    store(found, args.output)
    console.print(f"written: {args.output}, {sum(map(len, found.values()))} entries that gain")


def all_problems(tokens: int, batch: int, shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Iterator[Problem]:
    """What can be searched on this device."""
    yield from operator_problems(tokens, batch)
    yield from linear_problems(dtype)
    yield from portable_problems(dtype, shapes)
    if is_hopper(torch.device(device())):
        yield from hopper_problems(tokens, shapes)


def search(
    problem: Problem, dtype: torch.dtype, measure: Callable[[Callable[[], Any]], float],
    advance: Callable[[], None] = lambda: None,
) -> list[Trial]:  # fmt: skip
    """Try every candidate: hold it to fp64, then measure it. An empty candidate is what is pinned now."""
    function = get_op(problem.operator, problem.implementation)
    exact = _outputs(get_op(problem.operator, default_name("cpu", problem.operator)), _upcast(problem.make(dtype)))
    trials = []
    for entry in problem.candidates:
        try:
            trials.append(_try(problem, entry, function, exact, dtype, measure))
        except Exception as error:  # a compiler's: whatever it is, this candidate is none
            trials.append(Trial(entry=entry, fault=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"))
        advance()
    return trials


def in_turn(
    problem: Problem, dtype: torch.dtype, measure: Callable[[Callable[[], Any]], float], entries: list[Entry]
) -> list[float]:
    """Microseconds of each, the median of several turns: a clock that falls meanwhile falls for all of them."""
    function, inputs = get_op(problem.operator, problem.implementation), problem.make(dtype)
    turns: list[list[float]] = []
    for _ in range(TURNS):
        turns.append([])
        for entry in entries:
            with taking(problem, entry):
                turns[-1].append(measure(lambda: function(**inputs)))
    return [float(statistics.median(times)) for times in zip(*turns, strict=True)]


def fastest(trials: list[Trial]) -> Trial:
    """The best of those that are right.

    Raises:
        RuntimeError: none is.
    """
    right = [trial for trial in trials if trial.microseconds is not None]
    if not right:
        raise RuntimeError(f"no candidate is right: {trials[0].fault if trials else 'there is none'}")
    return min(right, key=lambda trial: trial.microseconds or 0.0)


def taking(problem: Problem, entry: Entry) -> AbstractContextManager[None]:
    """Meanwhile the problem's kernel runs as this candidate says; as ever where it is empty."""
    return imposed(problem.kernel, entry) if entry else nullcontext()


def measure(call: Callable[[], Any]) -> float:
    """Microseconds of a call, the median of replays of its CUDA graph, none of which finds its inputs in the L2."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    gc.disable()  # a collection inside the capture may unload a module, which ends the capture with an error
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        gc.enable()
    # Written before each replay, it empties the L2, and the host is done with the replay before the device is with it.
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device())
    samples = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(stop) * 1e3)
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
    with taking(problem, entry):
        for actual, expected in zip(_outputs(function, problem.make(dtype)), exact, strict=True):
            error = float((actual.double() - expected).norm() / expected.norm())
            if not error <= ERRORS[dtype]:
                return Trial(entry=entry, fault=f"relative error {error:.1e}, at most {ERRORS[dtype]:.1e}")
        inputs = problem.make(dtype)
        return Trial(entry=entry, microseconds=measure(lambda: function(**inputs)))


def _outputs(function: Callable[..., Any], inputs: dict[str, Any]) -> list[Tensor]:
    """The results, and what is updated in place."""
    results = function(**inputs)
    updated = [inputs[name] for name in ("state", "window") if name in inputs]
    return [*(results if isinstance(results, tuple) else (results,)), *updated]


def _upcast(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, int]:
    batch, _, seqlen = text.partition("x")
    try:
        return _count(batch), _count(seqlen)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be BATCHxTOKENS, such as 8x2048, got {text!r}") from None
