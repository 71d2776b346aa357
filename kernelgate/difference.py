"""How a benchmark's Triton kernels differ from those of the baseline.

A diagnosis, which never decides anything: a change of cuBLAS, or one more copy on the host's side, leaves every Triton
binary as it was.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelgate.session import Row

# What is stored about a kernel, and how people call it.
_WORDS = {
    "n_regs": "registers",
    "n_spills": "spills",
    "shared": "shared memory",
    "num_warps": "warps",
    "num_stages": "stages",
    "launches": "launches",
}


@dataclass(frozen=True, kw_only=True)
class KernelChange:
    """A kernel that is not what it was.

    Attributes:
        name: The kernel.
        before: Its binary then; None for a new kernel.
        now: Its binary now; None for one that is gone.
        changed: What changed of it, by name: then and now, None where it is not known.
    """

    name: str
    before: str | None
    now: str | None
    changed: Mapping[str, tuple[Any, Any]]

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.name}: new kernel, launches {_known(self.changed['launches'][1])}"
        if self.now is None:
            return f"{self.name}: no longer launched"
        parts = [f"{_WORDS[key]} {_known(then)} → {_known(now)}" for key, (then, now) in self.changed.items()]
        if self.before != self.now:
            parts.insert(0, "other binary")
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The kernels of a benchmark then and now: whether there are any, and those that changed."""

    kernels: bool
    changes: tuple[KernelChange, ...]

    @property
    def summary(self) -> str:
        """Where to look first."""
        if not self.kernels:
            return "no Triton kernel involved"
        if not self.changes:
            return "same Triton binaries: look at the host, a library or the machine"
        if all(change.before == change.now for change in self.changes):
            return "same Triton binaries, launched another number of times"
        return "Triton binaries changed"

    @property
    def lines(self) -> list[str]:
        """The summary, then each change."""
        if not self.changes:
            return [self.summary]
        alike = ", ".join(change.name for change in self.changes if not change.changed)
        rest = [f"  {change}" for change in self.changes if change.changed]
        return [f"{self.summary}:", *rest, *([f"  other binary, same resources: {alike}"] if alike else [])]


def difference(row: "Row") -> Difference | None:
    """The difference of a measured benchmark from its entry in the baseline; None where either is not known."""
    if row.entry is None or not ("kernels" in row.entry.details and "kernels" in row.details):
        return None
    return compare_kernels(row.entry.details["kernels"], row.details["kernels"])


def compare_kernels(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Difference:
    """Compare two lists of kernels as `artifacts.triton_artifacts` describes them."""
    changes: list[KernelChange] = []
    for name in sorted({kernel["name"] for kernel in (*before, *now)}):
        for then, current in _pairs(_named(before, name), _named(now, name)):
            changed = {key: (then.get(key), current.get(key)) for key in _WORDS if then.get(key) != current.get(key)}
            if then.get("binary") != current.get("binary") or changed:
                changes.append(
                    KernelChange(name=name, before=then.get("binary"), now=current.get("binary"), changed=changed)
                )
    return Difference(kernels=bool(before or now), changes=tuple(changes))


def _named(kernels: Iterable[Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    return {kernel["binary"]: kernel for kernel in kernels if kernel["name"] == name}


def _pairs(
    before: dict[str, Mapping[str, Any]], now: dict[str, Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Specialisations of one kernel, then and now: the same binaries first, then those most alike in size."""
    same = [(before[binary], now[binary]) for binary in before if binary in now]
    gone = sorted((kernel for binary, kernel in before.items() if binary not in now), key=_size)
    added = sorted((kernel for binary, kernel in now.items() if binary not in before), key=_size)
    both = min(len(gone), len(added))
    nothing: Mapping[str, Any] = {}
    return [
        *same,
        *zip(gone, added, strict=False),
        *((kernel, nothing) for kernel in gone[both:]),
        *((nothing, kernel) for kernel in added[both:]),
    ]


def _size(kernel: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(kernel.get(key, 0) for key in _WORDS)


def _known(value: object) -> str:
    return "?" if value is None else str(value)
