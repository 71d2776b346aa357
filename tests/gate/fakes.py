"""Runs that never happened, for what is said about them."""

from pathlib import Path
from types import SimpleNamespace

from kernelgate.baseline import Baseline, Entry
from kernelgate.metrics import ERROR, LATENCY, metric
from kernelgate.session import Row
from kernelgate.verdict import Interval, Outcome, Verdict

KERNEL = {
    "name": "_scan_kernel", "binary": "aa", "launches": 1, "n_regs": 128, "n_spills": 0, "shared": 1024,
    "num_warps": 4, "num_stages": 2,
}  # fmt: skip


def row(
    nodeid="tests/test_it.py::test_work",
    outcome=Outcome.SAME,
    *,
    slowdown=(0.004, -0.001, 0.009),
    latency=1.234e-3,
    reasons=(),
    notes=(),
    kernels=(KERNEL,),
    kernels_then=(KERNEL,),
    toolchain_then="3.11",
    failed_checks=(),
    **more,
):
    """A measured benchmark; ``more`` are further metrics, and an outcome of None one that was not compared."""
    estimate, lower, upper = slowdown
    metrics = {
        LATENCY: metric(latency, "s", "noisy"),
        "peak_bytes": metric(300 * 2**20, "B", "exact"),
        ERROR: metric(4.1e-5, "1", "error"),
        **more,
    }
    then = {**metrics, LATENCY: metric(latency / (1 + estimate), "s", "noisy")}
    verdict = Verdict(
        outcome=outcome or Outcome.SAME,
        reasons=tuple(reasons),
        interval=Interval(estimate=estimate, lower=lower, upper=upper),
        notes=tuple(notes),
        margin=0.01,
        detectable=0.02,
    )
    details = {"device": "cpu", "toolchain": {"python": "3.11"}}
    return Row(
        nodeid=nodeid,
        metrics=metrics,
        samples=[latency],
        details={**details, "kernels": list(kernels)},
        entry=Entry(
            metrics=then,
            details={"toolchain": {"python": toolchain_then}, "kernels": list(kernels_then)},
            stored={},
        )
        if outcome is not None
        else None,
        verdict=verdict if outcome is not None else None,
        failed_checks=list(failed_checks),
    )


def gate(*rows, missing=(), failed=(), not_run=(), comparing=True, **more):
    """A run that measured some benchmarks."""
    baseline = Baseline(Path("0001_base.json"), {"kernelgate": {"reason": "first"}, "commit_info": {"id": "c0ffee"}})
    facts = {
        "config": SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda name: None)),
        "rows": {each.nodeid: each for each in rows},
        "benchmarks": dict.fromkeys([*(each.nodeid for each in rows), *failed, *not_run]),
        "missing": list(missing),
        "failed": set(failed),
        "comparing": comparing,
        "recording": False,
        "local": False,
        "new_passes": more.get("local", False),
        "baseline": baseline if comparing else None,
        "reference": "baseline 0001_base.json" if comparing else "",
        "machine": SimpleNamespace(name="test-box", device={"type": "cpu", "name": "A | B <fast>"}),
        "options": SimpleNamespace(processes=1),
        "children": [],
        "recorded": None,
    }
    return SimpleNamespace(**(facts | more))
