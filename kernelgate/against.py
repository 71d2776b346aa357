"""The tree of another commit beside the current one, measured with the same plugin on the same machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kernelgate
from kernelgate.processes import FILES_VARIABLE, Tree
from kernelgate.provenance import git

BASE = "base"
CURRENT = "current"
FORBIDDEN_VARIABLE = "KERNELGATE_NOT_FROM"


def current_tree(config: pytest.Config, benchmarks: Collection[str] | None = None) -> Tree:
    """The tree that pytest was invoked in.

    Args:
        config: The run's.
        benchmarks: Only the files that hold these are collected: others would cost time, and may touch the GPU as they
            are imported. All that was asked for by default, as another commit's tree needs it.
    """
    arguments = list(config.invocation_params.args)
    if benchmarks is None:
        return Tree(name=CURRENT, folder=config.invocation_params.dir, arguments=arguments)
    files = sorted({str(config.rootpath / nodeid.partition("::")[0]) for nodeid in benchmarks})
    return Tree(
        name=CURRENT,
        folder=config.invocation_params.dir,
        arguments=arguments,  # as they are: rootdir, and with it every node id, follows from them
        environment={FILES_VARIABLE: os.pathsep.join(files)},
    )


@contextmanager
def checked_out(config: pytest.Config, commit: str, folder: Path) -> Iterator[Tree]:
    """The tree of a commit in a git worktree of its own, until the context ends.

    Args:
        config: The run's.
        commit: As :func:`resolve` named it.
        folder: Where worktrees may be made, outside version control.

    Raises:
        pytest.UsageError: There is no git, no repository, or no such commit here.
    """
    wanted = f"--gate-against {commit}: a git repository"
    top = Path(_git(config.rootpath, "rev-parse", "--show-toplevel", wanted=wanted))
    path = folder / commit[:12]
    _remove(top, path)  # what a killed run left
    _git(top, "worktree", "add", "--detach", "--force", str(path), commit, wanted=f"a worktree of {commit}")
    try:
        yield _tree_at(config, top, path, folder)
    finally:
        _remove(top, path)


def resolve(root: Path, reference: str) -> str:
    """The commit that a reference names.

    Raises:
        pytest.UsageError: It names none that this clone has; the message says what to fetch.
    """
    found = git(root, "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    if found is not None:
        return found
    if git(root, "rev-parse", "--is-shallow-repository") == "true":
        how = f"this clone is shallow: git fetch --unshallow, or git fetch --depth 1 origin {reference}"
    else:
        how = f"git fetch origin {reference}"
    raise pytest.UsageError(f"--gate-against: expected a commit of this clone, found {reference!r}; {how}")


def forbidden_modules() -> list[str]:
    """In a process that measures another tree: modules that were imported from the current one all the same."""
    top = os.environ.get(FORBIDDEN_VARIABLE)
    if not top:
        return []
    own = _worktree_of(Path.cwd().resolve()), Path(kernelgate.__file__).resolve().parent
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file:
            continue
        path = Path(file).resolve()
        belongs = any(path.is_relative_to(folder) for folder in own)
        if path.is_relative_to(top) and not belongs and "site-packages" not in path.parts:
            found.append(name)
    return sorted(found)


def _worktree_of(folder: Path) -> Path:
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), folder)


def _tree_at(config: pytest.Config, top: Path, path: Path, folder: Path) -> Tree:
    """The invocation, moved to a worktree: its folder, the paths among its arguments, and its import path."""
    top = top.resolve()
    invoked = config.invocation_params.dir.resolve()
    moved = path / invoked.relative_to(top) if invoked.is_relative_to(top) else invoked

    def move(text: str) -> str:
        return str(path) if text == str(top) else text.replace(f"{top}{os.sep}", f"{path}{os.sep}")

    # The plugin is the current one on either side. It stands first, and alone, so that nothing else comes with it.
    plugin = folder / "plugin"
    plugin.mkdir(parents=True, exist_ok=True)
    link = plugin / "kernelgate"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(kernelgate.__file__).resolve().parent, target_is_directory=True)
    imports = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return Tree(
        name=BASE,
        folder=moved,
        arguments=[move(argument) for argument in config.invocation_params.args],
        environment={
            "PYTHONPATH": os.pathsep.join([str(plugin), str(moved), *map(move, imports)]),
            "PYTHONSAFEPATH": "1",  # or the folder would stand before the plugin
            FORBIDDEN_VARIABLE: str(top),
        },
    )


def _remove(top: Path, path: Path) -> None:
    if path.exists():
        git(top, "worktree", "remove", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)  # what git no longer knows as a worktree
    git(top, "worktree", "prune")


def _git(root: Path, *arguments: str, wanted: str) -> str:
    try:
        finished = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise pytest.UsageError(f"{wanted}: expected git, which is not installed") from error
    if finished.returncode:
        raise pytest.UsageError(f"{wanted}: git {arguments[0]} failed: {finished.stderr.strip()}")
    return finished.stdout.strip()
