"""Stored baselines: one folder per class of machine, numbered files that are only ever added.

A file is in pytest-benchmark's own format, so that its tools read it. ``stats.data`` of a benchmark holds the samples
of all its processes one after the other, ``extra_info.rounds`` how many belong to each, ``extra_info.metrics`` one
value per process of everything else. The newest file of a folder is the whole truth: a recording carries over the
entries of benchmarks that it was not asked to run.

Since schema 2 ``kernelgate.checksum`` has a digest of each part of the content, so that a file edited by hand is
refused. It protects from accidents, not from somebody who computes it anew.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from pytest_benchmark.utils import safe_dumps

from kernelgate.content import ContentError, check_content
from kernelgate.metrics import Metric, read_metrics

SCHEMA = 2
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
        versions: Mapping[str, str] = self.details["toolchain"]
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

    @property
    def commit(self) -> str:
        """What was measured."""
        return str(self.document["commit_info"]["id"])

    @property
    def recorded(self) -> str:
        """When, to the minute."""
        return str(self.document["datetime"])[:16].replace("T", " ")

    @property
    def reason(self) -> str:
        """Why it was recorded; empty for a run that was saved by an option of pytest-benchmark's."""
        return str(self.document["kernelgate"].get("reason", ""))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The benchmarks by their full name, the test's node id."""
        return {
            stored["fullname"]: Entry(
                metrics=read_metrics(stored["extra_info"]["metrics"]), details=stored["extra_info"], stored=stored
            )
            for stored in self.document["benchmarks"]
        }


def load(path: Path) -> Baseline:
    """Read and check a baseline file.

    Raises:
        BaselineError: The file is truncated, foreign, of a schema this version does not know, was edited, or has a
            field that is not what it should be.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BaselineError(f"{path}: expected a JSON file: {error}") from error
    try:
        _check(document)
    except ContentError as error:
        raise BaselineError(f"{path}: {error}") from error
    return Baseline(path, document)


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it will be read back, with the checksum of its content.

    Args:
        document: Values that are not JSON become their repr, as pytest-benchmark writes them.
    """
    sealed: dict[str, Any] = json.loads(safe_dumps(document))
    sealed["kernelgate"]["checksum"] = _checksum(sealed)
    return sealed


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

    Raises:
        BaselineError: `load` would refuse it.
    """
    sealed = seal(document)
    try:
        _check(sealed)
    except ContentError as error:
        raise BaselineError(f"the next file of {folder}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        existing = files(folder)
        number = int(existing[-1].name.partition("_")[0]) + 1 if existing else 1
        path = folder / f"{number:04}_{commit}.json"
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{path.stem}-", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(sealed, separators=(",", ":")) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


def remove(paths: Collection[Path], *, lock: Path) -> None:
    """Remove baseline files while nobody else changes their folder.

    Raises:
        BaselineError: One of them is the newest of its folder, the one that is compared with. Then none is removed.
    """
    with FileLock(lock):
        for path in paths:
            if [path] == files(path.parent)[-1:]:
                raise BaselineError(f"{path}: the newest of its folder is never removed")
        for path in paths:
            path.unlink(missing_ok=True)


def _check(document: Any) -> None:
    """Raise a ContentError for a document that is not a sound baseline."""
    block = document.get("kernelgate") if isinstance(document, dict) else None
    if not isinstance(block, dict):
        raise ContentError("kernelgate: missing; the file was not written with this plugin")
    schema = block.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or not 1 <= schema <= SCHEMA:
        raise ContentError(f"kernelgate.schema: expected 1 to {SCHEMA}, found {schema!r}")
    check_content(document)  # first: what a field should be says more than that it was changed
    if schema == 1 and "checksum" not in block:
        return
    stored, computed = block.get("checksum"), _checksum(document)
    if not isinstance(stored, dict):
        raise ContentError(f"kernelgate.checksum: expected the digests of the content, found {stored!r}")
    for part in {**computed, **stored}:
        if stored.get(part) != computed.get(part):
            raise ContentError(
                f"{part}: differs from its digest in kernelgate.checksum: it was edited after it was recorded; "
                "a baseline is replaced by recording the next one"
            )


def _checksum(document: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each part of a document, so that an error can name the part: its fields, and every benchmark."""
    benchmarks = document.get("benchmarks")
    entries = benchmarks if isinstance(benchmarks, list) else []
    block = {name: value for name, value in document["kernelgate"].items() if name != "checksum"}
    parts = {**document, "kernelgate": block, "benchmarks": len(entries)}
    parts |= {f"benchmarks[{index}]": entry for index, entry in enumerate(entries)}
    return {name: hashlib.sha256(_canonical(part)).hexdigest()[:16] for name, part in parts.items()}


def _canonical(part: Any) -> bytes:
    return json.dumps(part, sort_keys=True, separators=(",", ":")).encode()
