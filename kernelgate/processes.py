"""Fresh processes, each measuring every selected benchmark once: the observations that a verdict rests on."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelgate.metrics import Observation

CHILD_OPTION = "--gate-child"


@dataclass(frozen=True, kw_only=True)
class Child:
    """A finished child process: what it observed, by node id, and how it ended."""

    number: int
    exit_status: str
    completed: bool
    output: str
    seconds: float
    observations: dict[str, Observation]

    @property
    def failed(self) -> bool:
        """Whether it has anything to complain about."""
        return self.exit_status != "exit status 0"


def run_child(
    number: int, arguments: Sequence[str], *, benchmarks: Collection[str], cwd: Path, timeout: float
) -> Child:
    """Run pytest once more with the arguments of this invocation and collect what it observed.

    Args:
        number: Tells the child from its siblings.
        arguments: pytest's arguments.
        benchmarks: Node ids of what it has to observe.
        cwd: Where pytest was invoked.
        timeout: Seconds after which the child and all its descendants are killed.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kernelgate-") as folder:
        results = Path(folder, "observations.jsonl")
        results.write_text(json.dumps(list(benchmarks)) + "\n", encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", f"{CHILD_OPTION}={results}", *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
            status = _describe(process.returncode)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            output, _ = process.communicate()
            status = f"killed after {timeout:g} s (--gate-timeout)"
        except BaseException:
            _kill_group(process)  # in a session of its own it would survive Ctrl-C
            raise
        observations = _read(results)
    return Child(
        number=number,
        exit_status=status,
        # With a test failed there is an observation less; otherwise it failed for reasons that touch all of them.
        completed=process.returncode == 0 or (process.returncode == 1 and len(observations) < len(benchmarks)),
        output=output,
        seconds=time.monotonic() - start,
        observations=observations,
    )


def selected_benchmarks(path: Path) -> list[str]:
    """The node ids that a child has to observe, as its parent selected them."""
    with path.open(encoding="utf-8") as stream:
        nodeids: list[str] = json.loads(stream.readline())
    return nodeids


def append_observation(path: Path, nodeid: str, observation: Observation) -> None:
    """Add an observation to a child's results, at once, so that a later crash loses nothing."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"nodeid": nodeid, "observation": observation.to_json()}) + "\n")


def neutralise(option: Any) -> None:
    """Switch off everything in a child's options that compares, writes a file or waits for a person."""
    for name in ("xmlpath", "benchmark_json", "benchmark_save", "benchmark_autosave", "benchmark_compare_fail"):
        setattr(option, name, None)
    for name in ("benchmark_compare", "benchmark_histogram", "benchmark_cprofile_dump"):
        setattr(option, name, [])
    option.benchmark_cprofile = None
    option.gate_record = None
    option.usepdb = option.trace = False


def _read(results: Path) -> dict[str, Observation]:
    _, *lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
    # A process killed while it wrote leaves a line without its end.
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["nodeid"]: Observation.from_json(row["observation"]) for row in rows}


def _describe(returncode: int) -> str:
    return f"killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exit status {returncode}"


def _kill_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # it ended in the meantime
        os.killpg(process.pid, signal.SIGKILL)
