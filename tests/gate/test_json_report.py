import json
import math
import re

import pytest

from kernelgate import json_report
from kernelgate.metrics import metric
from kernelgate.verdict import Outcome
from tests.gate.fakes import KERNEL, gate, row

pytestmark = pytest.mark.correctness

STRICT = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}


def written(run, exit_code=None):
    return json.loads(json.dumps(json_report.json_report(run, exit_code), allow_nan=False), **STRICT)


def test_a_regression_is_told_whole():
    other = {**KERNEL, "binary": "bb", "n_spills": 8}
    run = gate(row(outcome=Outcome.REGRESSED, reasons=["why"], notes=["by the way"], kernels=[other]))
    document = written(run, 1)
    assert document["schema"] == 1
    assert document["exit_code"] == 1
    assert document["conclusion"] == "Red: 1 REGRESSED of 1 benchmark."
    assert document["reference"] == "baseline 0001_base.json"
    assert document["baseline"] == {"file": "0001_base.json", "commit": "c0ffee", "datetime": None, "reason": "first"}
    assert document["machine"] == {"class": "test-box", "device": {"type": "cpu", "name": "A | B <fast>"}}
    assert document["counts"] == {"REGRESSED": 1}
    (benchmark,) = document["benchmarks"]
    assert benchmark["status"] == benchmark["verdict"] == "REGRESSED"
    assert (benchmark["reasons"], benchmark["notes"]) == (["why"], ["by the way"])
    assert benchmark["slowdown"] == {"estimate": 0.004, "lower": -0.001, "upper": 0.009}
    assert (benchmark["margin"], benchmark["detectable"]) == (0.01, 0.02)
    assert benchmark["kernels"] == {
        "summary": "Triton binaries changed",
        "changes": [{"name": "_scan_kernel", "binary": ["aa", "bb"], "changed": {"n_spills": [0, 8]}}],
    }
    latency = benchmark["metrics"]["latency_s"]
    assert latency == {
        "unit": "s",
        "kind": "noisy",
        "better": "lower",
        "then": [pytest.approx(1.234e-3 / 1.004)],
        "now": [1.234e-3],
    }


def test_what_was_not_measured_is_there_without_figures():
    document = written(gate(row(), missing=["t.py::test_gone"], failed=["t.py::test_wrong"], not_run=["t.py::test_c"]))
    statuses = {benchmark["nodeid"]: benchmark["status"] for benchmark in document["benchmarks"]}
    assert statuses == {
        "t.py::test_gone": "MISSING",
        "t.py::test_wrong": "FAILED",
        "t.py::test_c": "NOT RUN",
        "tests/test_it.py::test_work": "SAME",
    }
    gone = document["benchmarks"][0]
    assert gone.keys() == document["benchmarks"][-1].keys()
    assert gone["reasons"] == ["in the baseline, and did not run"]
    assert gone["metrics"] is None


def test_metrics_of_one_side_only_are_null_on_the_other():
    measured = row(new_bytes=metric(1, "B", "exact"))
    del measured.entry.metrics["new_bytes"]
    del measured.metrics["numerical_error"]
    metrics = written(gate(measured))["benchmarks"][0]["metrics"]
    assert (metrics["new_bytes"]["then"], metrics["new_bytes"]["now"]) == (None, [1])
    assert (metrics["numerical_error"]["then"], metrics["numerical_error"]["now"]) == ([4.1e-5], None)


def test_nothing_compared_is_null_rather_than_left_out():
    document = written(gate(row(outcome=None), comparing=False))
    (benchmark,) = document["benchmarks"]
    assert (document["compared"], document["reference"], document["baseline"]) == (False, None, None)
    assert benchmark["status"] == "MEASURED"
    assert [benchmark[name] for name in ("verdict", "slowdown", "margin", "detectable", "kernels")] == [None] * 5
    assert benchmark["toolchain"] == {"then": None, "now": {"python": "3.11"}}


def test_it_is_valid_json_whatever_was_measured():
    run = gate(
        row(
            odd=metric(math.nan, "1", "info"),
            endless=metric(math.inf, "1", "info"),
            slowdown=(0.1, -math.inf, math.nan),
        )
    )
    (benchmark,) = written(run)["benchmarks"]
    assert benchmark["metrics"]["odd"]["now"] == benchmark["metrics"]["endless"]["now"] == [None]
    assert benchmark["slowdown"] == {"estimate": 0.1, "lower": None, "upper": None}


def test_every_field_is_documented_and_there_is_no_other():
    run, of_a_benchmark = json_report.__doc__.split("Fields of a benchmark:")

    def documented(text):
        return re.findall(r"^    (\w+):", text, re.MULTILINE)

    document = written(gate(row()))
    assert documented(run) == list(document)
    assert documented(of_a_benchmark) == list(document["benchmarks"][0])
    assert len(json_report._MEASURED) == 9  # "the last nine fields"


def test_a_run_writes_it_where_it_was_asked_to(project):
    project.pytester.makepyfile(
        test_it="""
        import clock

        def test_lost(benchmark):
            benchmark(clock.work)

        def test_work(benchmark):
            benchmark(clock.work)
        """
    )
    project.record()
    file = project.path / "test_it.py"
    file.write_text(file.read_text().replace("benchmark(clock.work)", "raise OSError('lost')", 1))
    project.environment(SLOWDOWN=2)
    assert project.compare("--gate-json=gate.json").ret == 1
    document = json.loads((project.path / "gate.json").read_text(), **STRICT)
    assert document["counts"] == {"REGRESSED": 1, "FAILED": 1}
    benchmark, failed = document["benchmarks"]
    assert failed["reasons"] == ["OSError: lost"]
    assert benchmark["nodeid"] == "test_it.py::test_work"
    assert len(benchmark["metrics"]["latency_s"]["then"]) == 2
    assert len(benchmark["metrics"]["latency_s"]["now"]) == 1
    assert document["baseline"]["reason"] == "first"
    assert document["exit_code"] == 1


def test_a_file_that_cannot_be_written_turns_green_red_and_is_named(project):
    (project.path / "gate.json").mkdir()
    result = project.run("--gate-json=gate.json", "--gate-markdown=gate.md")
    assert result.ret == 1
    result.stdout.fnmatch_lines("--gate-json: not written: *gate.json*")
    assert (project.path / "gate.md").read_text().startswith("**1 benchmark measured, and nothing compared.**")
