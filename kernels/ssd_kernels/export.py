"""Write a folder that Hugging Face's `kernels` library loads, as it loads a kernel from the Hub.

    python -m ssd_kernels export FOLDER
    kernels.get_local_kernel(Path(FOLDER)).patch_transformers()

The folder holds a copy of this package and needs nothing else but torch, Triton and transformers; a Python process can
load one copy.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from rich.console import Console

VARIANT = "torch-universal"  # no compiled code: any torch, any backend
NAME = "ssd-kernels"
_PACKAGE = Path(__file__).parent
_ENTRY = '''"""Mamba-2 (SSD) operators, see `ssd_kernels` beside this file."""

import importlib.util
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent / "ssd_kernels" / "__init__.py"


def _load():
    loaded = sys.modules.get("ssd_kernels")
    if loaded is not None:
        if Path(loaded.__file__) == _PACKAGE:
            return loaded
        raise ImportError(
            f"ssd_kernels is loaded from {loaded.__file__} already, and its operators have names that only one copy "
            f"can have: use that one, or load {_PACKAGE} in a process of its own"
        )
    spec = importlib.util.spec_from_file_location(
        "ssd_kernels", _PACKAGE, submodule_search_locations=[str(_PACKAGE.parent)]
    )
    sys.modules["ssd_kernels"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


ssd_kernels = _load()
__all__ = ssd_kernels.__all__
globals().update({name: getattr(ssd_kernels, name) for name in __all__})
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("folder", type=Path, help="where to write; must not exist, or be empty")


def run(args: argparse.Namespace, console: Console) -> None:
    """Write the folder and say so."""
    variant = export(args.folder)
    console.print(f"{variant}: load it by kernels.get_local_kernel(Path({str(args.folder)!r}))")


def export(folder: Path) -> Path:
    """Write this package into a folder as `kernels` expects it.

    Args:
        folder: of the kernel; made if it is not there.

    Returns:
        The folder of the one variant in it.

    Raises:
        ValueError: there is something in the folder already, or it is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must be empty or not exist, got {folder}")
    variant = folder / "build" / VARIANT
    shutil.copytree(_PACKAGE, variant / "ssd_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    digest = hashlib.sha256()
    for path in sorted(variant.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(variant)}\0".encode() + path.read_bytes())
    metadata = {
        "name": NAME,
        "id": f"ssd_kernels_{digest.hexdigest()[:12]}",
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cuda"},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    (variant / "__init__.py").write_text(_ENTRY)
    return variant
