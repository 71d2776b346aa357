"""The results that compilation is held to: `perf_baselines/aot/triton-VERSION/TARGET.json`.

Registers, spills and shared memory are exact: the same compiler makes the same binary anywhere. So they are compared
exactly, and stored for each version of Triton.
"""

import json
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "perf_baselines" / "aot"

# By the name of a case and the name of a kernel.
Results = dict[str, dict[str, dict[str, int]]]


def path(target: str) -> Path:
    """Where the results of this version of Triton are stored."""
    return FOLDER / f"triton-{version('triton')}" / f"{target}.json"


def load(target: str) -> Results | None:
    """The stored results, or None where there are none for this version of Triton."""
    return json.loads(path(target).read_text()) if path(target).exists() else None


def store(target: str, results: Results) -> None:
    """Replace the stored results."""
    path(target).parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for case, kernels in sorted(results.items()):
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(used)}" for name, used in kernels.items())
        lines.append(f"  {json.dumps(case)}: {{\n{rows}\n  }}")
    path(target).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def differences(target: str, stored: Results, results: Results, *, partial: bool = False) -> list[str]:
    """One line for each case, kernel or number that is not as stored; with `partial`, of the cases in `results`."""
    lines = []
    for case in sorted(results if partial else results | stored):
        before, after = stored.get(case, {}), results.get(case, {})
        for kernel in sorted(before | after):
            where = f"{target} · {case} · {kernel}"
            if kernel not in after:
                lines.append(f"{where}: stored, and no longer launched")
            elif kernel not in before:
                lines.append(f"{where}: new, {_numbers(after[kernel])}")
            elif before[kernel] != after[kernel]:
                names = sorted(before[kernel] | after[kernel])
                changed = [
                    f"{name} {before[kernel].get(name)} → {after[kernel].get(name)}"
                    for name in names
                    if before[kernel].get(name) != after[kernel].get(name)
                ]
                lines.append(f"{where}: {', '.join(changed)}")
    return lines


def _numbers(used: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in used.items())
