"""Going on with a run that was interrupted: what its processes measured counts, if nothing has changed since."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from kernelgate.machine import Machine, toolchain
from kernelgate.options import RESUME_OPTION, Options
from kernelgate.project import ignored_by_git

ABOUT = "about.json"


def facts(config: pytest.Config, options: Options, machine: Machine, base_commit: str) -> dict[str, str]:
    """Everything that two parts of one run have in common."""
    arguments = config.invocation_params.args
    return {
        "arguments": " ".join(argument for argument in arguments if argument != RESUME_OPTION),
        "processes": str(options.processes),
        "tree": _fingerprint(config.rootpath, _reports(config)),
        "base": base_commit,
        "machine": machine.name,
        "toolchain": json.dumps(toolchain(), sort_keys=True),
    }


def prepare_folder(local: Path, found: dict[str, str], *, resuming: bool, write_line: Callable[[str], None]) -> Path:
    """The folder for the results of this run's processes, empty unless the run goes on with an earlier one.

    Raises:
        pytest.UsageError: There is nothing to go on with, or it was another run; the message names what differs.
    """
    folder = local / "runs"
    about = folder / ABOUT
    if resuming:
        earlier = _read(about)
        if earlier is None:
            raise pytest.UsageError(f"{RESUME_OPTION}: expected an interrupted run in {folder}, found none")
        if not found["tree"]:
            raise pytest.UsageError(
                f"{RESUME_OPTION}: expected a git repository with a commit, which tells whether the tree has changed"
            )
        if differing := sorted(key for key in found if earlier.get(key) != found[key]):
            raise pytest.UsageError(
                f"{RESUME_OPTION}: the interrupted run was another one; {', '.join(differing)} differ"
            )
        write_line(f"kernelgate: going on with the run in {folder}")
        return folder
    ignored_by_git(local)
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.json*"):
        path.unlink()
    about.write_text(json.dumps(found), encoding="utf-8")
    return folder


def _read(about: Path) -> dict[str, str] | None:
    try:
        earlier = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or one that was cut off as it was written
        return None
    return earlier if isinstance(earlier, dict) else None


def _reports(config: pytest.Config) -> set[Path]:
    """The files that a run writes when it ends, and when it is interrupted."""
    chosen = [getattr(config.option, name, None) for name in ("xmlpath", "gate_markdown", "gate_json")]
    chosen.append(getattr(config.option.benchmark_json, "name", None))  # opened already
    return {Path(config.invocation_params.dir, name).resolve() for name in chosen if name}


def _fingerprint(root: Path, reports: Collection[Path]) -> str:
    """Commit, changes and untracked files of a tree, but for reports; empty where git does not tell."""
    if not _git(root, "rev-parse", "--verify", "--quiet", "HEAD"):
        return ""
    digest = hashlib.sha256()
    for arguments in (["rev-parse", "HEAD"], ["diff", "HEAD", "--binary"]):
        digest.update(_git(root, *arguments))
    for name in sorted(filter(None, _git(root, "ls-files", "-z", "--others", "--exclude-standard").split(b"\0"))):
        path = root / name.decode()
        if path.resolve() in reports:
            continue
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False).stdout
    except FileNotFoundError:
        return b""
