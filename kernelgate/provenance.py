"""Which commit was measured, that it was measured as it is, and what git has of a file."""

import os
import subprocess
from pathlib import Path

COMMIT_VARIABLE = "KERNELGATE_COMMIT"


class ProvenanceError(Exception):
    """The tree is not the tree of a commit."""


def clean_commit(root: Path) -> str:
    """The commit checked out at a root, or the one named for a tree exported without its repository.

    Raises:
        ProvenanceError: There are uncommitted changes, or the commit is unknown.
    """
    head = git(root, "rev-parse", "HEAD")
    if head is None:
        commit = os.environ.get(COMMIT_VARIABLE, "")
        if not commit:
            raise ProvenanceError(f"{root} has no commit; for an exported tree name it in {COMMIT_VARIABLE}")
        return commit
    changes = git(root, "status", "--porcelain")
    if changes:
        raise ProvenanceError(f"{root} has uncommitted changes:\n{changes}")
    return head


def is_committed(path: Path) -> bool:
    """Whether git can bring a file back: what it has now is what the commit checked out has."""
    stored = git(path.parent, "rev-parse", "--verify", "--quiet", f"HEAD:./{path.name}")
    return stored is not None and stored == git(path.parent, "hash-object", "--", path.name)


def describe(root: Path) -> str:
    """The commit checked out at a root, marked if there are uncommitted changes; the one named for an exported tree."""
    head = git(root, "rev-parse", "HEAD")
    if head is None:
        return os.environ.get(COMMIT_VARIABLE, "unknown")
    return f"{head}-dirty" if git(root, "status", "--porcelain") else head


def git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails or there is no git."""
    try:
        finished = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
