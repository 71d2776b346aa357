"""Which commit was measured, and that it was measured as it is."""

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
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        commit = os.environ.get(COMMIT_VARIABLE, "")
        if not commit:
            raise ProvenanceError(f"{root} has no commit; for an exported tree name it in {COMMIT_VARIABLE}")
        return commit
    changes = _git(root, "status", "--porcelain")
    if changes:
        raise ProvenanceError(f"{root} has uncommitted changes:\n{changes}")
    return head


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails or there is no git."""
    try:
        finished = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
