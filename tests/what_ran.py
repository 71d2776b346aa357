"""Which functions a call of an SSD implementation really ran through, seen rather than believed."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ssd_kernels import names
from ssd_kernels.registry import target


def watched(ssd: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, str]:
    """Call an implementation; return its result and the `module:function` that made it.

    An adapter's module names the functions that a call of it runs through in `RUNS`; otherwise it is the function
    itself.

    Raises:
        RuntimeError: a function that `RUNS` names did not run, or an implementation of ssd_kernels ran instead.
    """
    called: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add((frame.f_globals.get("__name__", ""), frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        result = ssd(*args, **kwargs)
    finally:
        sys.setprofile(before)
    itself = f"{ssd.__module__}:{ssd.__qualname__}"
    ran = {f"{module}:{name}" for module, name in called}
    declared = getattr(sys.modules[ssd.__module__], "RUNS", (itself,))
    if missing := [name for name in declared if name not in ran]:
        raise RuntimeError(f"{itself} fell back to another path: {', '.join(missing)} did not run")
    if ours := ran & {target("ssd", name) for name in names()} - {itself}:
        raise RuntimeError(f"{itself} fell back to {', '.join(sorted(ours))}")
    return result, ", ".join(declared)
