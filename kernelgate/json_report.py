"""The whole run as JSON, for programs. Numbers that are not finite are null, so that every parser reads it.

Fields of the document:
    schema: 1. It grows when a field changes its meaning or goes away, not when one is added.
    kernelgate: Version of the plugin.
    created: When, in UTC.
    conclusion: The run in one sentence.
    exit_code: How pytest ended: 0 green, 1 red, 10 AMBIGUOUS, 11 INSUFFICIENT, 12 ENV, others as pytest's own.
    compared: Whether anything was compared.
    reference: What was compared with, for people; null where nothing was.
    baseline: ``file``, ``commit``, ``datetime`` and ``reason`` of the baseline; null without one.
    recorded: The baseline file that this run wrote; null where it wrote none.
    machine: ``class``, the key of the baselines, and ``device``, what was found.
    toolchain: ``now``, versions by name, and ``changes``, a list of ``name``, ``then``, ``now``.
    processes: ``asked`` for, at most, and ``children``, a list of those that were started: ``ended`` (how),
        ``seconds``, ``observed`` (how many benchmarks). Without any, pytest's own process measured.
    counts: Benchmarks by status.
    benchmarks: A list, worst first.

Fields of a benchmark:
    nodeid: The test.
    status: REGRESSED, MISSING, FAILED, NEW, ENV, INSUFFICIENT, AMBIGUOUS, NOT RUN, IMPROVED, SAME, or MEASURED where
        nothing was compared. MISSING: in the baseline, and did not run. FAILED: the test failed by other means than
        its verdict. The last nine fields are null where nothing was measured.
    reasons: Why, for people, most important first. Of FAILED: the first line of pytest's message.
    notes: Remarks that changed nothing.
    verdict: The outcome, also where a check of ``--benchmark-compare-fail`` failed; null where nothing was compared.
    slowdown: ``estimate``, ``lower`` and ``upper`` bound, as fractions of the baseline; null where unknown.
    margin: The slowdown that counts as none, a fraction.
    detectable: The minimum detectable effect, a fraction.
    device: Where it ran.
    implementation: ``asked`` for and ``ran``, as declared; null where not.
    toolchain: ``then`` and ``now``, versions by name; ``then`` is null for a benchmark that is not in the baseline.
    metrics: By name: ``unit``, ``kind`` and ``better`` as in `kernelgate.metrics.Metric`, and ``then`` and ``now``,
        lists of one value per process; null where it was not measured.
    kernels: ``summary`` for people and ``changes``, a list of ``name``, ``binary`` (a pair: then, now) and ``changed``,
        pairs by name of what changed; null where the kernels of one side are not known.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import kernelgate
from kernelgate.difference import difference
from kernelgate.results import Result, conclusion, counts, reference, results, toolchain_changes

if TYPE_CHECKING:
    from kernelgate.metrics import Metric
    from kernelgate.session import Gate, Row

SCHEMA = 1

_MEASURED = (
    "verdict", "slowdown", "margin", "detectable", "device", "implementation", "toolchain", "metrics", "kernels",
)  # fmt: skip


def json_report(gate: "Gate", exit_code: int | None = None) -> dict[str, Any]:
    """The document described above.

    Args:
        gate: The run.
        exit_code: How pytest ended, where that is known.
    """
    found = results(gate)
    document = {
        "schema": SCHEMA,
        "kernelgate": kernelgate.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "conclusion": conclusion(gate, exit_code),
        "exit_code": None if exit_code is None else int(exit_code),
        "compared": gate.comparing,
        "reference": reference(gate),
        "baseline": _baseline(gate),
        "recorded": None if gate.recorded is None else str(gate.recorded),
        "machine": {"class": gate.machine.name, "device": gate.machine.device},
        "toolchain": {
            "now": {name: version for row in gate.rows.values() for name, version in row.details["toolchain"].items()},
            "changes": [{"name": name, "then": then, "now": now} for name, then, now in toolchain_changes(gate)],
        },
        "processes": {
            "asked": gate.options.processes,
            "children": [
                {"ended": child.exit_status, "seconds": child.seconds, "observed": len(child.observations)}
                for child in gate.children
            ],
        },
        "counts": {str(status): count for status, count in counts(found).items()},
        "benchmarks": [_benchmark(result) for result in found],
    }
    clean: dict[str, Any] = finite(document)
    return clean


def finite(value: Any) -> Any:
    """The same JSON value with null for every number that JSON cannot write, and text for what is no JSON value."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    return value if value is None or isinstance(value, int) else str(value)


def _baseline(gate: "Gate") -> dict[str, Any] | None:
    if gate.baseline is None:
        return None
    document = gate.baseline.document
    return {
        "file": str(gate.baseline.path),
        "commit": (document.get("commit_info") or {}).get("id"),
        "datetime": document.get("datetime"),
        "reason": document["kernelgate"].get("reason"),
    }


def _benchmark(result: Result) -> dict[str, Any]:
    row = result.row
    return {
        "nodeid": result.nodeid,
        "status": result.status,
        "reasons": result.reasons,
        "notes": result.notes,
        **(dict.fromkeys(_MEASURED) if row is None else _measured(row)),
    }


def _measured(row: "Row") -> dict[str, Any]:
    verdict, found = row.verdict, difference(row)
    interval = verdict.interval if verdict is not None else None
    return {
        "verdict": verdict.outcome if verdict is not None else None,
        "slowdown": {"estimate": interval.estimate, "lower": interval.lower, "upper": interval.upper}
        if interval is not None
        else None,
        "margin": verdict.margin if verdict is not None else None,
        "detectable": verdict.detectable if verdict is not None else None,
        "device": row.details["device"],
        "implementation": row.details.get("implementation"),
        "toolchain": {
            "then": row.entry.toolchain if row.entry is not None else None,
            "now": row.details["toolchain"],
        },
        "metrics": _metrics(row),
        "kernels": {
            "summary": found.summary,
            "changes": [
                {"name": change.name, "binary": [change.before, change.now], "changed": change.changed}
                for change in found.changes
            ],
        }
        if found is not None
        else None,
    }


def _metrics(row: "Row") -> dict[str, Any]:
    then: Mapping[str, Metric] = row.entry.metrics if row.entry is not None else {}
    merged = {}
    for name in {**row.metrics, **then}:
        described = row.metrics.get(name) or then[name]
        merged[name] = {
            "unit": described.unit,
            "kind": described.kind,
            "better": described.better,
            "then": then[name].values if name in then else None,
            "now": row.metrics[name].values if name in row.metrics else None,
        }
    return merged
