from types import SimpleNamespace

import pytest

from kernelgate import results
from kernelgate.metrics import metric
from kernelgate.verdict import Outcome
from tests.gate.fakes import gate, row

pytestmark = pytest.mark.correctness

WORSE = row("t.py::test_worse", Outcome.REGRESSED)
DOUBTFUL = row("t.py::test_doubtful", Outcome.AMBIGUOUS)
BETTER = row("t.py::test_better", Outcome.IMPROVED)
NEW = row("t.py::test_new", Outcome.NEW)


@pytest.mark.parametrize(
    ("run", "exit_code", "expected"),
    [
        (gate(row(), BETTER), 0, "Green: no regression in 2 benchmarks, 1 improved."),
        (gate(row(), WORSE, missing=["t.py::test_gone"]), 1, "Red: 1 REGRESSED, 1 MISSING of 3 benchmarks."),
        (gate(row(), DOUBTFUL), 10, "Undecided: 1 AMBIGUOUS of 2 benchmarks."),
        (gate(DOUBTFUL, WORSE), 1, "Red: 1 REGRESSED of 2 benchmarks."),
        (gate(row(), failed=["t.py::test_wrong"]), 1, "Red: 1 FAILED of 2 benchmarks."),
        (gate(NEW), 1, "Red: 1 NEW of 1 benchmark."),
        (gate(NEW, local=True), 0, "No baseline for machine class test-box: 1 passed uncompared."),
        (gate(NEW, row(), new_passes=True), 0, "Green: no regression in 2 benchmarks, 1 new."),
        (gate(row()), 1, "Red: a test that is no benchmark failed."),
        (gate(row(outcome=None), comparing=False), 0, "1 benchmark measured, and nothing compared."),
        (gate(), 0, "No benchmark was measured."),
        (gate(row()), 2, "The run did not finish (exit code 2); nothing can be concluded from it."),
        (gate(row()), None, "Green: no regression in 1 benchmark."),
    ],
)
def test_a_run_is_one_sentence(run, exit_code, expected):
    assert results.conclusion(run, exit_code) == expected


def test_a_benchmark_that_was_not_reached_is_not_the_same_as_one_that_is_missing():
    found = results.results(gate(row(), not_run=["t.py::test_b", "t.py::test_c"], missing=["t.py::test_c"]))
    assert [(each.nodeid, each.status) for each in found[:2]] == [
        ("t.py::test_c", "MISSING"),
        ("t.py::test_b", "NOT RUN"),
    ]
    assert results.counts(found) == {"MISSING": 1, "NOT RUN": 1, "SAME": 1}


def test_every_outcome_has_a_status_and_its_place():
    order = [status for status in results.Status if status in list(Outcome)]
    assert order == list(Outcome)


def test_a_failure_or_a_skip_is_told_by_the_first_line_of_what_pytest_says():
    reports = [
        SimpleNamespace(nodeid="a", longrepr="plain: 1\nmore"),
        SimpleNamespace(nodeid="b", longrepr=SimpleNamespace(reprcrash=SimpleNamespace(message="ValueError: x\ny"))),
        SimpleNamespace(nodeid="c", longrepr=None),
    ]
    skipped = [SimpleNamespace(nodeid="d", longrepr=("t.py", 1, "Skipped: no GPU"))]
    terminal = SimpleNamespace(stats={"failed": reports, "skipped": skipped})
    run = gate(
        failed=["a", "b", "c"],
        not_run=["d"],
        config=SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda _: terminal)),
    )
    assert [each.reasons for each in results.results(run)] == [
        ("plain: 1",),
        ("ValueError: x",),
        (),
        ("Skipped: no GPU",),
    ]


class TestFacts:
    def test_the_reference_is_said_in_the_gates_own_words_and_only_of_a_comparison(self):
        against = "commit 1a2b3c4 (main), alternating with it on the same device"
        assert results.reference(gate(reference=against, baseline=None)) == against
        assert results.reference(gate(reference="")) is None
        assert results.reference(gate(reference="baseline 0001_base.json", comparing=False)) is None

    def test_processes_are_those_that_measured(self):
        assert results.processes(gate(row())) == "1 process against 1"
        twice = row("t.py::test_b", outcome=None)
        twice.metrics["latency_s"] = results_metric(3)
        assert results.processes(gate(twice, comparing=False)) == "3 processes"
        assert results.processes(gate(row(), twice)) == "1 to 3 processes against 1"
        assert results.processes(gate(options=SimpleNamespace(processes=4))) == "4 processes"

    def test_a_tool_that_came_or_went_has_changed(self):
        assert results.toolchain_changes(gate(row(), row("t.py::test_b", toolchain_then="3.10"))) == [
            ("python", "3.10", "3.11")
        ]
        gone = row()
        del gone.details["toolchain"]["python"]
        assert results.toolchain_changes(gate(gone)) == [("python", "3.11", "none")]

    def test_ceilings_are_said_once_for_each_device(self):
        rates = {
            "ceiling_copy": metric(4e12, "B/s", "ceiling", better="higher"),
            "ceiling_matmul": metric(7e14, "FLOP/s", "ceiling", better="higher"),
        }
        run = gate(row(**rates), row("t.py::test_b", **rates), row("t.py::test_c"))
        assert results.ceilings(run) == {"cpu": "copy 4 TB/s, matmul 700 TFLOP/s"}


def results_metric(processes):
    first = metric(1e-3, "s", "noisy")
    return type(first)(values=first.values * processes, unit="s", kind="noisy")
