import re

import pytest
from rich.cells import cell_len

from kernelgate import table
from kernelgate.metrics import metric
from kernelgate.results import results
from kernelgate.verdict import Outcome
from tests.gate.fakes import KERNEL, gate, row

pytestmark = pytest.mark.correctness

SCAN = "tests/perf/test_scan.py::test_scan"
FIGURES = "1.234 ms  +0.4 % [-0.1, +0.9]  2.0 %  300 MiB  4.1e-05"


def lines(*rows, width=80, **more):
    return ["".join(text for text, _ in line) for line in table.lay_out(results(gate(*rows, **more)), width)]


class TestLayout:
    def test_a_benchmark_has_all_its_figures_on_one_line_of_eighty_columns(self):
        heading, group, line = lines(row(f"{SCAN}[triton-all-q256-1x819]"))
        assert heading.split() == ["latency", "slowdown", "finds", "peak", "error"]
        assert group == f"SAME  {SCAN}"
        assert line == f"  triton-all-q256-1x819  {FIGURES}"
        assert len(line) == 79

    def test_the_gaps_shrink_before_a_name_moves_up(self):
        heading, _, line = lines(row(f"{SCAN}[{'n' * 27}]"))
        assert line == f"  {'n' * 27} {FIGURES.replace('  ', ' ')}"
        assert len(line) == len(heading) == 80

    def test_a_name_without_room_has_a_line_of_its_own(self):
        _, _, short, long, figures = lines(row(f"{SCAN}[short]"), row(f"{SCAN}[{'n' * 70}]"))
        assert long == "  " + "n" * 70
        assert figures.strip() == FIGURES
        assert short.endswith(FIGURES)
        assert len(short) == len(figures) == 80

    def test_what_asks_for_attention_comes_first_with_its_reasons(self):
        shown = lines(
            row("t.py::test_same"),
            row("t.py::test_better", Outcome.IMPROVED),
            row("t.py::test_doubtful", Outcome.AMBIGUOUS, reasons=["latency_s: neither"]),
            row("t.py::test_worse", Outcome.REGRESSED, reasons=["peak_bytes: 2 B, was 1 B"]),
            missing=["t.py::test_gone"],
            failed=["t.py::test_wrong"],
            not_run=["t.py::test_unreached"],
        )
        order = ["REGRESSED", "MISSING", "FAILED", "AMBIGUOUS", "NOT RUN", "IMPROVED", "SAME"]
        assert [line.removesuffix("  t.py") for line in shown if not line.startswith(" ")] == order
        assert shown[shown.index("REGRESSED  t.py") + 2] == "      peak_bytes: 2 B, was 1 B"
        assert shown[shown.index("MISSING  t.py") + 1 :][:2] == [
            "  test_gone",
            "      in the baseline, and did not run",
        ]
        assert shown[shown.index("NOT RUN  t.py") + 1] == "  test_unreached"

    def test_groups_of_one_status_stay_together(self):
        shown = lines(row("t.py::test_a[1]"), row("t.py::test_b[1]"), row("t.py::test_a[2]"))
        assert [line.split()[0] for line in shown[1:]] == ["SAME", "1", "2", "SAME", "1"]

    def test_a_wider_terminal_shows_more_columns(self):
        rate = metric(4e6, "tokens/s", "info", better="higher")
        heading, _, line = lines(row(throughput=rate), width=160)
        assert heading.split() == ["latency", "spread", "was", "slowdown", "finds", "peak", "error", "throughput"]
        assert line.split()[0] == "test_work"
        assert line.endswith("4 Mtokens/s")
        assert len(line) <= 160
        assert "throughput" not in lines(row(throughput=rate))[0]

    def test_a_narrow_terminal_keeps_latency_and_slowdown(self):
        heading, _, name, figures = lines(row("t.py::test_work[long]"), width=34)
        assert heading.split() == ["latency", "slowdown"]
        assert name == "  long"
        assert figures.strip() == "1.234 ms  +0.4 % [-0.1, +0.9]"

    def test_what_was_not_compared_has_no_slowdown(self):
        heading, group, _ = lines(row(outcome=None), comparing=False)
        assert group == "MEASURED  tests/test_it.py"
        assert "slowdown" not in heading
        assert "finds" not in heading

    def test_one_verdict_has_one_color(self):
        found = table.lay_out(results(gate(row(), row("t.py::test_b", Outcome.REGRESSED))), 80)
        colored = {text: markup for line in found for text, markup in line if markup}
        assert colored["SAME"] == {"bold": True, "green": True}
        assert colored["REGRESSED"] == {"bold": True, "red": True}

    def test_nothing_makes_no_line(self):
        assert lines() == []


class TestAlignment:
    ROWS = (
        row(f"{SCAN}[短い名前]", slowdown=(0.1234, 0.1, 0.15)),
        row(f"{SCAN}[e\u0301te\u0301]", latency=1.5),
        row(f"{SCAN}[plain]", Outcome.REGRESSED, slowdown=(3.0, 2.5, 40.0), reasons=["短" * 30 + " " + "い" * 30]),
    )

    @pytest.mark.parametrize("width", [80, 160])
    def test_wide_and_combining_characters_keep_the_columns_apart(self, width):
        shown = lines(*self.ROWS, width=width)
        figures = [line for line in shown if line.endswith("4.1e-05")]
        assert len(figures) == 3
        assert len({cell_len(line) for line in (shown[0], *figures)}) == 1
        assert len({cell_len(line.partition("[")[0]) for line in figures}) == 1
        assert max(map(cell_len, shown)) <= width

    def test_a_number_stays_whole_wherever_the_line_ends(self):
        reason = (
            "latency_s: 3.220 ms, was 3.148 ms: +2.4 % [+2.1, +2.7], margin 1.0 %; n_regs: 255 registers, was 128 "
            "registers, allowed 0 registers; shared: 2.000 KiB, was 1 B; registers 128 → 140, ± 0.3 %; 812 GB/s"
        )
        whole = (
            "3.220 ms", "+2.4 % [+2.1, +2.7]", "1.0 %", "255 registers", "2.000 KiB", "128 → 140",
            "± 0.3 %", "812 GB/s",
        )  # fmt: skip
        for width in range(24, 120):
            shown = list(table.wrap(reason, width, "  "))
            assert max(map(len, shown)) <= width
            assert all(any(number in line for line in shown) for number in whole)
            assert " ".join(line.strip() for line in shown) == reason

    def test_an_indented_remark_keeps_its_indentation_on_every_line(self):
        assert list(table.wrap("  one two", 8, "  ")) == ["    one", "    two"]


class TestRemarks:
    def test_a_regression_says_how_its_kernels_differ(self):
        other = {**KERNEL, "binary": "bb", "n_spills": 8}
        shown = lines(row(outcome=Outcome.REGRESSED, reasons=["why"], kernels=[other]))
        assert shown[-3:] == [
            "      why",
            "      Triton binaries changed:",
            "        _scan_kernel: other binary, spills 0 → 8",
        ]
        assert "Triton" not in "\n".join(lines(row(kernels=[other])))

    def test_the_state_of_the_machine_is_said_once(self):
        shown = lines(*(row(f"t.py::test_{name}", Outcome.ENV, reasons=["it is loaded"]) for name in "abc"))
        assert [line.strip() for line in shown].count("it is loaded") == 1

    def test_a_failed_stock_check_is_red_whatever_the_verdict(self):
        shown = lines(row(failed_checks=["Field 'mean' has failed"]))
        assert shown[1] == "FAILED  tests/test_it.py"
        assert shown[-1] == "      --benchmark-compare-fail: Field 'mean' has failed"


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("a/t.py::test_f", ("a/t.py", "test_f")),
        ("a/t.py::TestC::test_f", ("a/t.py::TestC", "test_f")),
        ("a/t.py::TestC::test_f[x-1]", ("a/t.py::TestC::test_f", "x-1")),
        ("a/t.py::test_f[x[0]::y]", ("a/t.py::test_f", "x[0]::y")),
    ],
)
def test_a_name_is_split_from_what_it_shares(nodeid, expected):
    assert table.split_name(nodeid) == expected


def test_colors_are_those_that_pytest_knows():
    from _pytest._io import TerminalWriter

    found = [row("t.py::test_it", outcome) for outcome in Outcome]
    for each in found:
        for line in table.lay_out(results(gate(each)), 80):
            for text, markup in line:
                assert re.sub(r"\x1b\[\d+m", "", TerminalWriter().markup(text, **markup)) == text
