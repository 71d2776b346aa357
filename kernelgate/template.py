"""Processes forked from one that has imported and collected everything and has not touched the GPU yet.

On a GPU's host the imports of torch and transformers take longer than the measurement. What times on the device
depend on, context, allocator, clocks, is made anew by every fork. Times on the processor depend on where code and heap
lie, and forks share that: there every process has to be a fresh interpreter.

The template is pytest itself, invoked as a child is, that waits in its test loop. Through a pipe it is asked for a
fork, a JSON object a line; through another it answers with the fork's pid and, when that has ended, its status.
"""

import gc
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from kernelgate import plants
from kernelgate.processes import Child, Launcher, Tree, collect, describe, kill_group, timed_out, write_request

TEMPLATE_OPTION = "--gate-template"


class TemplateError(Exception):
    """The template cannot fork: it did not start, or it has touched the GPU."""


class Forked:
    """Starts processes as forks of one template, which is started with the first of them."""

    def __init__(
        self,
        tree: Tree,
        environment: Mapping[str, str],
        timeout: float,
        fallback: Launcher,
        write_line: Callable[[str], None],
    ) -> None:
        self._tree = tree
        self._fallback, self._fallen_back, self._write_line = fallback, False, write_line
        # Asked through NVML, whether there is a GPU leaves the process fit to fork; asked of CUDA, it does not.
        self._environment = {
            **os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", **tree.environment, **environment,
        }  # fmt: skip
        self._timeout = timeout
        self._output = tempfile.TemporaryFile(mode="w+", prefix="kernelgate-", errors="replace")  # noqa: SIM115 -- its own
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = -1

    def run(self, results: Path, benchmarks: Collection[str], plant: str = "") -> Child:
        """See :class:`kernelgate.processes.Launcher`. Where no template can be had, processes are fresh ones."""
        if self._process is None and not self._fallen_back:
            try:
                self._start()
            except TemplateError as error:
                self._write_line(f"kernelgate: every process starts from nothing: {error}")
                self._fallen_back = True
                self.close()
        if self._fallen_back:
            return self._fallback.run(results, benchmarks, plant)
        start, pid = time.monotonic(), None
        write_request(results, benchmarks)
        try:
            position = self._output.seek(0, os.SEEK_END)
            os.write(self._requests, json.dumps({"results": str(results), "plant": plant}).encode() + b"\n")
            pid = self._expect(self._timeout)["pid"]
            answer = self._answer(self._timeout)
            if answer is None:
                kill_group(pid)
                self._expect(60.0)
                status = timed_out(self._timeout)
            elif not answer:
                raise TemplateError("the process to fork from ended")
            else:
                status = describe(os.waitstatus_to_exitcode(answer["status"]))
        except (TemplateError, BrokenPipeError):
            self._abandon(pid)  # the next process gets a new one
            status = "its template lost"
        except BaseException:
            self._abandon(pid)
            raise
        self._output.seek(position)
        output = self._output.read()
        return collect(results, exit_status=status, output=output, seconds=time.monotonic() - start)

    def close(self) -> None:
        """See :class:`kernelgate.processes.Launcher`."""
        self._fallback.close()
        if self._process is not None:
            kill_group(self._process.pid)
            self._process.wait()
            os.close(self._requests)
            os.close(self._answers)
            self._process = None

    def _abandon(self, pid: int | None) -> None:
        if pid is not None:
            kill_group(pid)
        self.close()

    def _start(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", f"{TEMPLATE_OPTION}={requests},{answers}", *self._tree.arguments],
            cwd=self._tree.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(requests, answers),
            start_new_session=True,
        )
        os.close(requests)
        os.close(answers)
        if why := self._expect(self._timeout).get("unfit"):
            raise TemplateError(f"the process to fork from {why}")

    def _expect(self, timeout: float) -> Any:
        answer = self._answer(timeout)
        if not answer:
            self._output.seek(0)
            why = "did not answer in time" if answer is None else "ended"
            raise TemplateError(f"the process to fork from {why}:\n{self._output.read()}")
        return answer

    def _answer(self, timeout: float) -> Any:
        """The template's next line; None where it does not come in time, an empty object where it ended."""
        line, deadline = b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            if not readable:
                return None
            if not (byte := os.read(self._answers, 1)):
                return {}
            line += byte
        return json.loads(line)


def serve(pipes: str, session: pytest.Session) -> Path | None:
    """In the template: fork for each request.

    Args:
        pipes: The descriptors to read requests from and to write answers to.
        session: The session that waits; its tests are for the forks.

    Returns:
        In a fork its file of results; in the template, at the end, None.
    """
    requests, answers = map(int, pipes.split(","))
    gc.collect()
    gc.freeze()  # what was imported is not looked at again by every collection of every fork
    _say(answers, unfit=_unfit())
    with os.fdopen(requests) as lines:
        for line in iter(lines.readline, ""):
            for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
                if stream is not None:
                    stream.flush()  # or the fork would write it once more
            session.config.get_terminal_writer().flush()
            if pid := os.fork():
                _say(answers, pid=pid)
                _, status = os.waitpid(pid, 0)
                _say(answers, status=status)
            else:
                os.setsid()
                os.close(answers)
                request = json.loads(line)
                os.environ[plants.VARIABLE] = request["plant"]
                return Path(request["results"])
    return None


def _unfit() -> str:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "touched CUDA while it collected tests, so no process can be forked from it (gate_fork = never)"
    return ""


def _say(answers: int, **message: Any) -> None:
    os.write(answers, json.dumps(message).encode() + b"\n")
