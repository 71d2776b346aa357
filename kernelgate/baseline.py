"""Stored baselines: one folder per class of machine, numbered files that are only ever added.

A file is in pytest-benchmark's own format, so that its tools read it. ``stats.data`` of a benchmark holds the samples
of all its processes one after the other, ``extra_info.rounds`` how many belong to each, ``extra_info.metrics`` one
value per process of everything else. The newest file of a folder is the whole truth: a recording carries over the
entries of benchmarks that it was not asked to run.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from pytest_benchmark.utils import safe_dumps

from kernelgate.metrics import LATENCY, Metric, read_metrics

SCHEMA = 1
_NAME = re.compile(r"(\d{4,})_.*\.json")


class BaselineError(Exception):
    """A baseline that is not there or cannot be read; the message names file and field."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One benchmark of a baseline."""

    metrics: Mapping[str, Metric]
    details: Mapping[str, Any]
    stored: Mapping[str, Any]

    @property
    def toolchain(self) -> Mapping[str, str]:
        """The versions it was measured with."""
        versions: Mapping[str, str] = self.details.get("toolchain", {})
        return versions


@dataclass(frozen=True)
class Baseline:
    """A baseline file."""

    path: Path
    document: Mapping[str, Any]

    @property
    def machine_class(self) -> str:
        """The class of machine that it was measured on."""
        return str(self.document["kernelgate"]["machine_class"])

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The benchmarks by their full name, the test's node id."""
        return {stored["fullname"]: self._entry(index, stored) for index, stored in enumerate(self._benchmarks)}

    @property
    def _benchmarks(self) -> list[dict[str, Any]]:
        return self.document["benchmarks"]  # type: ignore[no-any-return]

    def _entry(self, index: int, stored: Mapping[str, Any]) -> Entry:
        field = f"benchmarks[{index}].extra_info.metrics"
        try:
            metrics = read_metrics(stored["extra_info"]["metrics"])
        except (KeyError, AttributeError, ValueError) as error:
            raise BaselineError(f"{self.path}: {field}: {error}") from error
        if LATENCY not in metrics:
            raise BaselineError(f"{self.path}: {field}.{LATENCY}: missing")
        return Entry(metrics=metrics, details=stored["extra_info"], stored=stored)


def load(path: Path) -> Baseline:
    """Read and check a baseline file.

    Raises:
        BaselineError: The file is not JSON, not a baseline, or of a schema this version does not know.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path}: expected a JSON file: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("kernelgate"), dict):
        raise BaselineError(f"{path}: kernelgate: missing; the file was not written with this plugin")
    schema = document["kernelgate"].get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise BaselineError(f"{path}: kernelgate.schema: expected at most {SCHEMA}, found {schema!r}")
    if not isinstance(document["kernelgate"].get("machine_class"), str):
        raise BaselineError(f"{path}: kernelgate.machine_class: missing")
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, list):
        raise BaselineError(f"{path}: benchmarks: expected a list, found {type(benchmarks).__name__}")
    for index, benchmark in enumerate(benchmarks):
        for field in ("fullname", "stats", "extra_info"):
            if not isinstance(benchmark, dict) or field not in benchmark:
                raise BaselineError(f"{path}: benchmarks[{index}].{field}: missing")
    baseline = Baseline(path, document)
    _ = baseline.entries  # a malformed entry is found now, before anything is measured
    return baseline


def files(folder: Path) -> list[Path]:
    """The baseline files of a folder, oldest first."""
    numbered = ((int(match[1]), path) for path in folder.glob("*.json") if (match := _NAME.fullmatch(path.name)))
    return [path for _, path in sorted(numbered)]


def find(folder: Path, selector: str) -> Path:
    """The file of a folder whose name starts with the selector; numbers may leave out their leading zeros.

    Raises:
        BaselineError: None or several match; the message lists what there is.
    """
    prefix = selector.zfill(4) if selector.isdigit() else selector
    matching = [path for path in files(folder) if path.name.startswith(prefix)]
    if len(matching) == 1:
        return matching[0]
    existing = ", ".join(path.name for path in files(folder)) or "none"
    raise BaselineError(f"{len(matching)} baselines in {folder} match {selector!r}; there are: {existing}")


def write(folder: Path, document: Mapping[str, Any], commit: str, *, lock: Path) -> Path:
    """Add the next file to a folder: whole or not at all, whoever else is writing.

    Args:
        folder: The machine class's folder.
        document: The content.
        commit: Names the file, after its number.
        lock: A file outside version control that serialises writers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        existing = files(folder)
        number = int(existing[-1].name.partition("_")[0]) + 1 if existing else 1
        path = folder / f"{number:04}_{commit}.json"
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                # As pytest-benchmark writes them: a parameter that is no JSON value is written as its repr.
                stream.write(safe_dumps(document, separators=(",", ":")) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    return path
