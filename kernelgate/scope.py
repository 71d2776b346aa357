"""Which benchmarks an invocation is about, by their node ids."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest


def in_scope(config: pytest.Config, nodeids: Iterable[str]) -> list[str]:
    """The node ids that lie under the files, folders and tests named on the command line, and are not ignored."""
    named = [_relative(config, argument) for argument in config.args]
    ignored = [_relative(config, path) for path in config.getoption("ignore") or ()]
    return [
        nodeid
        for nodeid in nodeids
        if any(_contains(name, nodeid) for name in named) and not any(_contains(path, nodeid) for path in ignored)
    ]


def _relative(config: pytest.Config, argument: str) -> str:
    """A command line argument as a node id is written: relative to rootdir, with forward slashes."""
    path, separator, test = argument.partition("::")
    absolute = Path(os.path.abspath(config.invocation_params.dir / path))
    if not absolute.exists():  # a module's name under --pyargs: about everything, rather than about nothing
        return "."
    return Path(os.path.relpath(absolute, config.rootpath)).as_posix() + separator + test


def _contains(name: str, nodeid: str) -> bool:
    if not name.strip("./"):  # rootdir or a folder above it
        return True
    return nodeid == name or nodeid.startswith((f"{name}/", f"{name}::", f"{name}["))
