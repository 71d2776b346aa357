"""Run functions in processes of their own: a compiler that dies takes nothing else with it."""

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Failure:
    """A call in its own process raised, or the process died."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def run_all(function: str, calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """The result of `function(*call)` for each call, or a `Failure`; in order, each in its own process.

    The function is named, `"module:function"`, so that this process does not import its module. The processes are
    forked from one that has, so that a call costs no imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.partition(":")[0]])

    def run(call: tuple[Any, ...]) -> Any:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(sender, function, call))
        process.start()
        sender.close()
        try:
            worked, result = receiver.recv()
        except EOFError:
            process.join()
            return Failure(f"the process died with exit status {process.exitcode}")
        process.join()
        return result if worked else Failure(result)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(run, calls)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _report(sender: Connection, function: str, call: tuple[Any, ...]) -> None:
    module, _, name = function.partition(":")
    try:
        sender.send((True, getattr(importlib.import_module(module), name)(*call)))
    except Exception:
        sender.send((False, traceback.format_exc()))
