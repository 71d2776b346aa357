"""Fresh processes, each measuring every benchmark it is asked for once: the observations that a verdict rests on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kernelgate import plants
from kernelgate.metrics import Observation

CHILD_OPTION = "--gate-child"
FILES_VARIABLE = "KERNELGATE_FILES"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A checkout to measure: where pytest is invoked in it, with which arguments, in which environment."""

    name: str
    folder: Path
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    plant: str = ""
    """The fault planted into what is measured; see :mod:`kernelgate.plants`."""


@dataclass(frozen=True, kw_only=True)
class Child:
    """A finished process: what it observed, what it did not and why, by node id, and how it ended."""

    exit_status: str
    output: str
    seconds: float
    observations: Mapping[str, Observation]
    unobserved: Mapping[str, "Unobserved"]
    collected: Collection[str] | None
    """The benchmarks of its tree that the invocation selects; None where it did not get as far as its test loop."""

    @property
    def unexplained(self) -> bool:
        """Whether no benchmark accounts for its end: it did not get to its tests, or failed without a failed test."""
        return self.collected is None or (self.exit_status != "exit status 0" and not self.unobserved)


@dataclass(frozen=True, kw_only=True)
class Unobserved:
    """A benchmark that a process did not observe: it failed, was skipped, or was what the process died of."""

    skipped: bool
    reason: str


class Launcher(Protocol):
    """Starts the processes of one tree on one device, one after the other."""

    def run(self, results: Path, benchmarks: Collection[str], plant: str = "") -> Child:
        """Measure in a new process, which writes into `results` as it goes, with a fault planted if one is named."""

    def close(self) -> None:
        """Leave nothing running."""


class Fresh:
    """Every process is a new interpreter: nothing is shared, and all of the start-up is paid again."""

    def __init__(self, tree: Tree, environment: Mapping[str, str], timeout: float) -> None:
        self._tree = tree
        self._environment = {**os.environ, **tree.environment, **environment}
        self._timeout = timeout
        self._running: int | None = None

    def run(self, results: Path, benchmarks: Collection[str], plant: str = "") -> Child:
        """See :class:`Launcher`."""
        start = time.monotonic()
        write_request(results, benchmarks)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", f"{CHILD_OPTION}={results}", *self._tree.arguments],
            cwd=self._tree.folder,
            env={**self._environment, plants.VARIABLE: plant},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running = process.pid
        try:
            output, _ = process.communicate(timeout=self._timeout)
            status = describe(process.returncode)
        except subprocess.TimeoutExpired:
            kill_group(process.pid)
            output, _ = process.communicate()
            status = timed_out(self._timeout)
        except BaseException:
            kill_group(process.pid)  # in a session of its own it would survive Ctrl-C
            raise
        finally:
            self._running = None
        return collect(results, exit_status=status, output=output, seconds=time.monotonic() - start)

    def close(self) -> None:
        """See :class:`Launcher`."""
        if self._running is not None:
            kill_group(self._running)


def write_request(results: Path, benchmarks: Collection[str]) -> None:
    """Begin a file of results with the node ids that are wanted."""
    results.write_text(json.dumps(list(benchmarks)) + "\n", encoding="utf-8")


def read_request(results: Path) -> list[str]:
    """The node ids that a process has to observe, as its parent selected them."""
    with results.open(encoding="utf-8") as stream:
        nodeids: list[str] = json.loads(stream.readline())
    return nodeids


def append(results: Path, **event: Any) -> None:
    """Add an event to a process's results, at once, so that a later crash loses nothing."""
    with results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(event) + "\n")


def collect(results: Path, *, exit_status: str, output: str, seconds: float) -> Child:
    """What a process left in its file of results."""
    observations: dict[str, Observation] = {}
    unobserved: dict[str, Unobserved] = {}
    running, collected = "", None
    for event in events(results):
        nodeid, kind = event.get("nodeid", ""), event["event"]
        if kind == "collected":
            collected = event["nodeids"]
        elif kind == "observation":
            observations[nodeid] = Observation.from_json(event["observation"])
        elif kind in ("failed", "skipped"):
            unobserved[nodeid] = Unobserved(skipped=kind == "skipped", reason=event["reason"])
        running = nodeid if kind == "start" else ""
    if running:
        unobserved[running] = Unobserved(skipped=False, reason=f"the process that measured it ended with {exit_status}")
    return Child(
        exit_status=exit_status,
        output=output,
        seconds=seconds,
        observations=observations,
        unobserved=unobserved,
        collected=collected,
    )


def events(results: Path) -> list[dict[str, Any]]:
    """What was written whole: who is killed as it writes leaves a line cut off, perhaps with the next one in it."""
    if not results.exists():
        return []
    lines = results.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def neutralise(option: Any) -> None:
    """Switch off everything in a child's options that compares, writes a file or waits for a person."""
    for name in (
        *("xmlpath", "gate_record", "gate_against", "gate_markdown", "gate_json"),
        *("benchmark_json", "benchmark_save", "benchmark_autosave", "benchmark_compare_fail", "benchmark_cprofile"),
    ):
        setattr(option, name, None)
    for name in ("benchmark_compare", "benchmark_histogram", "benchmark_cprofile_dump"):
        setattr(option, name, [])
    option.gate_selftest = option.gate_resume = False
    option.usepdb = option.trace = False


def narrow(config: Any) -> None:
    """Collect no more files than the parent named, if it did."""
    if files := os.environ.pop(FILES_VARIABLE, ""):
        config.args = files.split(os.pathsep)


def describe(returncode: int) -> str:
    """How a process ended."""
    return f"killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exit status {returncode}"


def timed_out(seconds: float) -> str:
    """How a process ended that was given no more time."""
    return f"killed after {seconds:g} s (--gate-timeout)"


def kill_group(pid: int) -> None:
    """Kill the leader of a process group and all its descendants in it."""
    with suppress(ProcessLookupError):  # it ended in the meantime
        os.killpg(pid, signal.SIGKILL)
