"""The tables and the plot of docs/kernels.md are made of what is kept, by the command that it names."""

import json
import xml.etree.ElementTree as ET

import pytest

from tests.study import __main__ as command
from tests.study.roofline import roofline
from tests.study.stored import Row, collect, keep, load
from tests.study.tables import TIMES, tables

pytestmark = pytest.mark.correctness

METRICS = {
    "latency_s": 2e-4, "eager_s": 5e-4, "workspace_bytes": 2.0972e6, "bandwidth": 2e12, "arithmetic": 2e14,
    "ceiling_copy": 4e12, "ceiling_matmul": 7e14,
}  # fmt: skip


def row(group, params, **metrics):
    return Row(group=group, params=params, ran="ours", metrics={**METRICS, **metrics}, where="a GPU, torch 2, Triton 3")


ROWS = [
    row("peers", {"shape": "1x8192", "scan": "triton"}),
    row("peers", {"shape": "1x8192", "scan": "portable"}, latency_s=3.2e-4, bandwidth=1.25e12),
    row("peers", {"shape": "1x8192", "scan": "a peer"}, latency_s=8e-4, bandwidth=5e11, arithmetic=5e13, eager_s=1e-3),
    row("peers", {"shape": "8x2048", "scan": "triton"}),
    row("ablation", {"shape": "1x8192", "variant": "as it ships"}),
    row("ablation", {"shape": "8x2048", "variant": "as it ships"}),
    row("ablation", {"shape": "1x8192", "variant": "otherwise"}, latency_s=2.2e-4),
    row("regret", {"name": "a_kernel-4"}, regret=0.012),
]


def document(rows):
    """As pytest-benchmark writes them."""
    benchmarks = []
    for each in rows:
        metrics = {name: {"values": [0.5 * value, value, 2 * value]} for name, value in each.metrics.items()}
        extra = {"metrics": metrics, "toolchain": {"torch": "2", "triton": "3"}, "implementation": {"ran": "ours"}}
        test = {"group": each.group, "params": each.params, "fullname": "tests/study/test_it.py::test_it"}
        benchmarks.append({**test, "extra_info": extra})
    return json.dumps({"machine_info": {"device": {"name": "a GPU"}}, "benchmarks": benchmarks})


def test_a_table_of_each_group_is_made():
    made = tables(ROWS)
    made = {name: table.replace(TIMES, " x ") for name, table in made.items()}
    assert "| 1 x 8192 | 0.1000 | 0.2000 (2.00) | 0.3200 (3.20) | 0.8000 (8.00) | 4.0 |\n" in made["speed"]
    assert "| 8 x 2048 | 0.1000 | 0.2000 (2.00) |  |  |  |\n" in made["speed"]
    assert "| 1 x 8192 | 0.500 | 0.500 | 1.000 | 2.0 |\n" in made["eager"]
    assert "| 1 x 8192 | 2.0 | 2.0 | 2.0 |\n" in made["memory"]
    assert "| otherwise | 0.2200 (+10.0%) |  |\n" in made["ablation"]
    assert "| `a_kernel-4` | 200.0 | +1.2% | 50% |\n" in made["regret"]
    assert tables(ROWS[-1:]).keys() == {"regret"}


def test_results_are_kept_and_later_ones_replace_earlier(tmp_path):
    (tmp_path / "first.json").write_text(document(ROWS))
    changed = row("regret", {"name": "a_kernel-4"}, regret=0.03)
    (tmp_path / "second.json").write_text(document([changed]))
    rows = collect([tmp_path / "first.json", tmp_path / "second.json"])
    assert rows == [*ROWS[:-1], changed]
    keep(rows, tmp_path / "kept.json")
    assert load(tmp_path / "kept.json") == rows
    assert collect([], rows) == rows
    (tmp_path / "none.json").write_text(document([]))
    with pytest.raises(ValueError, match=r"none\.json: expected results of pytest -m study, found none"):
        collect([tmp_path / "none.json"])


def test_the_plot_has_every_point_of_peers_and_operators_and_both_ceilings():
    root = ET.fromstring(roofline(ROWS))  # noqa: S314 -- our own
    said = [each.text for each in root.findall(".//{*}title")]
    assert {"triton: 1x8192 triton, 200.0 µs", "a_kernel: a_kernel-4, 200.0 µs"} <= set(said)
    assert len(said) == 5 + 4  # points, and a mark for each series
    texts = [each.text for each in root.findall(".//{*}text")]
    assert {"copy 4.00 TB/s", "matrix product 700 TFLOP/s"} <= set(texts)


def test_the_command_fills_the_document_and_keeps_the_rows(tmp_path, monkeypatch, capsys):
    for name in ("FILE", "DOCUMENT", "PLOT"):
        monkeypatch.setattr(command, name, tmp_path / name)
    (tmp_path / "results.json").write_text(document(ROWS[-1:]))
    (tmp_path / "DOCUMENT").write_text("before\n<!-- table: regret -->\nold\n<!-- end -->\nafter\n")
    assert command.main([str(tmp_path / "results.json")]) == 0
    text = (tmp_path / "DOCUMENT").read_text()
    assert text.startswith("before\n<!-- table: regret -->\n\n| kernel")
    assert text.endswith("50% |\n\n<!-- end -->\nafter\n")
    assert "old" not in text
    assert load(tmp_path / "FILE") == ROWS[-1:]
    (tmp_path / "DOCUMENT").write_text("nowhere")
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "results.json")])
    assert "expected a place for the table 'regret', found none" in capsys.readouterr().err


def test_the_document_is_what_the_command_makes_of_what_is_kept():
    text = command.DOCUMENT.read_text()
    for name in tables(ROWS):
        assert f"<!-- table: {name} -->" in text
    if not command.FILE.exists():
        pytest.skip("nothing was measured yet")
    assert command.filled(text, load()) == text
    assert command.PLOT.read_text() == roofline(load())
