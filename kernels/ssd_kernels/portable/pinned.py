"""Launch configurations found on a class of devices by `python -m ssd_kernels tune`, as data: `pinned.json`.

    {"nvidia-h100-80gb-hbm3": {"gated_rms_norm": [{"sizes": [8192], "block": {"BLOCK": 8192, …}, "num_warps": 8,
                                                   "num_stages": 2}]}}

Sizes are the arguments of the kernel's function in :mod:`ssd_kernels.portable.configs`; of the Hopper kernels, whose
names begin with "hopper", what :mod:`ssd_kernels.hopper.configs` says. What has no entry there, and a device that has
none, takes that function's rule, which was chosen on an H200.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("pinned.json")

Entry = dict[str, Any]  # block, num_warps, num_stages

Size = int | str

_imposed: dict[str, Entry] = {}  # by kernel
_asked: dict[str, tuple[Size, ...]] = {}  # by kernel, the last


def pinned(kernel: str, *sizes: Size) -> Entry | None:
    """The current device's entry for a kernel and sizes; None where there is none."""
    _asked[kernel] = sizes
    if _imposed and kernel in _imposed:
        return _imposed[kernel]
    table = _table()
    return table.get((device_class(), kernel, sizes)) if table else None


@contextmanager
def imposed(kernel: str, entry: Entry) -> Iterator[None]:
    """Meanwhile a kernel runs as this entry says, whatever the sizes."""
    # Imported only here: where nothing is imposed, nothing needs Triton.
    from ssd_kernels.repeating import forget

    _imposed[kernel] = entry
    forget()
    try:
        yield
    finally:
        del _imposed[kernel]
        forget()


def asked(kernel: str) -> tuple[Size, ...]:
    """The sizes of a kernel that an entry was last asked for."""
    return _asked[kernel]


def device_class() -> str:
    """The name of the current device in the table; "" without one."""
    return _class_of(torch.cuda.current_device()) if torch.cuda.is_available() else ""


def store(found: dict[str, list[Entry]], file: Path = FILE) -> None:
    """Put what was found on the current device into the table, in the place of entries for the same sizes."""
    classes = _read(file)
    entries = classes.setdefault(device_class(), {})
    for kernel, new in found.items():
        kept = [entry for entry in entries.get(kernel, []) if entry["sizes"] not in [each["sizes"] for each in new]]
        entries[kernel] = [*kept, *new]
    file.write_text(json.dumps(classes, indent=2, sort_keys=True) + "\n")
    _table.cache_clear()


@cache
def _table() -> dict[tuple[str, str, tuple[Size, ...]], Entry]:
    return {
        (name, kernel, tuple(entry["sizes"])): {key: entry[key] for key in ("block", "num_warps", "num_stages")}
        for name, kernels in _read(FILE).items()
        for kernel, entries in kernels.items()
        for entry in entries
    }


@cache
def _class_of(device: int) -> str:
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")


def _read(file: Path) -> dict[str, dict[str, list[Entry]]]:
    return json.loads(file.read_text()) if file.exists() else {}
