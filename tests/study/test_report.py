"""The tables and the plot of docs/kernels.md are made of what is kept, by the command that it names."""

import json
import xml.etree.ElementTree as ET

import pytest

from tests.study import __main__ as command, experiment_tables
from tests.study.__main__ import DOCUMENTS, Document, filled
from tests.study.roofline import roofline
from tests.study.stored import Row, collect, keep, load, merged
from tests.study.tables import TIMES, tables

pytestmark = pytest.mark.correctness

METRICS = {
    "latency_s": 2e-4, "eager_s": 5e-4, "workspace_bytes": 2.0972e6, "bandwidth": 2e12, "arithmetic": 2e14,
    "ceiling_copy": 4e12, "ceiling_matmul": 7e14,
}  # fmt: skip


def row(group, params, **metrics):
    known = {name: value for name, value in {**METRICS, **metrics}.items() if value is not None}
    return Row(group=group, params=params, ran="ours", metrics=known, where="a GPU, torch 2, Triton 3")


ROWS = [
    row("peers", {"shape": "1x8192", "scan": "triton"}),
    row("peers", {"shape": "1x8192", "scan": "portable"}, latency_s=3.2e-4, bandwidth=1.25e12),
    row("peers", {"shape": "1x8192", "scan": "a peer"}, latency_s=8e-4, bandwidth=5e11, arithmetic=5e13, eager_s=1e-3),
    row("peers", {"shape": "8x2048", "scan": "triton"}),
    row("ablation", {"shape": "1x8192", "variant": "as it ships"}),
    row("ablation", {"shape": "8x2048", "variant": "as it ships"}),
    row("ablation", {"shape": "1x8192", "variant": "otherwise"}, latency_s=2.2e-4),
    row("regret", {"name": "a_kernel-4"}, regret=0.012),
    row("prefill", {"tokens": "1024", "model": "bamba"}, latency_s=0.031, peak_bytes=1.0737e9),
    row("prefill", {"tokens": "8192", "model": "bamba"}, latency_s=0.245, peak_bytes=2.1475e9, arithmetic=6e14),
    row("prefill", {"tokens": "1024", "model": "a peer"}, latency_s=1.5, peak_bytes=1.718e10),
    row("decode", {"batch": "16", "model": "bamba"}, latency_s=6.78e-3, eager_s=6.9e-3),
    row("families decode", {"family": "zamba2", "model": "patched"}, latency_s=5e-3, eager_s=None, bandwidth=None),
]


REGRET = [each for each in ROWS if each.group == "regret"]


def seed_row(layers, variant, *, cached, chunks, seconds):
    params = {"layers": str(layers), "variant": variant, "cached": str(cached), "chunks": str(chunks)}
    return row("seed", params, **numbers(seconds, timed=100 if cached else 5, new=100))


def numbers(seconds, *, timed, new):
    """What the grid notes of a cell: the first token after a tenth of a second, the others in the rest."""
    made = {"timed_tokens": timed, "new_tokens": new, "moved": 2e12, "copy": 4e12, "peak_bytes": 9e9}
    for name, value in (("all_s", seconds), ("first_s", 0.1), ("token_s", (seconds - 0.1) / (new - 1))):
        made |= {name: value, f"{name}:low": 0.5 * value, f"{name}:high": 2 * value}
    return made


def compile_row(call, mode, **metrics):
    return row(
        "compile", {"layers": "4", "call": call, "mode": mode}, ready_s=12.34, graph_breaks=0, recompiles=1, **metrics
    )


EXPERIMENT = [
    seed_row(4, "default", cached=False, chunks=1, seconds=1.1),
    seed_row(4, "independent", cached=False, chunks=9, seconds=0.9),
    seed_row(4, "default", cached=True, chunks=4, seconds=0.2),
    seed_row(32, "optimized", cached=True, chunks=4, seconds=0.6),
    row("fms", {"layers": "32", "variant": "optimized"}, **numbers(1.28, timed=256, new=256)),
    compile_row("prefill", "eager", device_launches=77),
    compile_row("decode", "default", device_launches=66, latency_s=1e-3),
]


def document(rows):
    """As pytest-benchmark writes them."""
    benchmarks = []
    for each in rows:
        metrics = {name: {"values": [0.5 * value, value, 2 * value]} for name, value in each.metrics.items()}
        extra = {
            "metrics": metrics,
            "numbers": each.metrics if each.group in ("seed", "fms") else {},
            "toolchain": {"torch": "2", "triton": "3"},
            "implementation": {"ran": "ours"},
        }
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
    assert "| tokens | limit | bamba | a peer |\n" in made["prefill"]
    assert "| 1024 | 15.50 | 31.0 (1.00) | 1500.0 (16.00) |\n| 8192 | 210.00 | 245.0 (2.00) |  |\n" in made["prefill"]
    assert "| 16 | 3.39 | 6.78 / 6.90 |\n" in made["decode"]
    assert "| family | patched |\n| --- | --- |\n| zamba2 | 5.00 |\n" in made["families decode"]
    assert tables(REGRET).keys() == {"regret"}


def test_the_experiment_has_a_table_of_each_depth_with_and_without_a_cache():
    made = experiment_tables.tables(EXPERIMENT)
    without = made["seed 4 layers, without cache"]
    assert "| 1 | 1.100 [0.550, 2.200]; 2000 |  | 11.9 | 9.4 |  |\n" in without
    assert "| 9 |  | 0.900 [0.450, 1.800]; 2000 |  |  | 47 |\n" in without
    assert "5 of 100 tokens timed.\n" in without
    assert "| 4 | 0.200 [0.100, 0.400]; 2000 |\n" in made["seed 4 layers, with cache"]
    assert "| 4 | 0.600 [0.300, 1.200]; 2000 |\n" in made["seed 32 layers, with cache"]
    assert "| chunks | `default`, 4 layers, ms | `optimized`, 32 layers, ms | quoted" in made["first"]
    assert "| 4 | 100.00 [50.00, 200.00] | 100.00 [50.00, 200.00] | 261 |" in made["first"]
    assert made["first"].count("\n") == 3
    assert "| chunks | `default`, 4 layers, GB | `independent`, 4 layers, GB | quoted" in made["memory"]
    assert "| 1 | 9.0 |  | 20.6 |" in made["memory"]
    assert "| 32 | `optimized` | 5.000 [2.500, 10.000] | 4.627 [2.314, 9.255] |" in made["fms"]
    assert "| 2000 (50%) |\n" in made["fms"]
    assert "| 4 | eager | 12.3 | 0 | 1 | 77 | 0.200 | 0.500 |\n" in made["compile prefill"]
    assert "| 4 | default | 12.3 | 0 | 1 | 66 | 1.000 | 0.500 |\n" in made["compile decode"]


def test_results_are_kept_and_later_ones_replace_earlier(tmp_path):
    (tmp_path / "first.json").write_text(document(ROWS))
    changed = row("regret", {"name": "a_kernel-4"}, regret=0.03)
    (tmp_path / "second.json").write_text(document([changed]))
    rows = collect([tmp_path / "first.json", tmp_path / "second.json"])
    assert rows == [changed if each in REGRET else each for each in ROWS]
    keep(rows, tmp_path / "kept.json")
    assert load(tmp_path / "kept.json") == rows
    assert merged(rows, []) == rows
    (tmp_path / "third.json").write_text(document(EXPERIMENT))
    found = collect([tmp_path / "third.json"])
    assert [each.params for each in found] == [each.params for each in EXPERIMENT]
    assert found[0].metrics["all_s:high"] == 2.2
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


def test_the_command_fills_the_documents_of_the_rows_and_keeps_them(tmp_path, monkeypatch, capsys):
    first = Document(path=tmp_path / "first.md", groups=("regret",), tables=tables, plot=tmp_path / "plot.svg")
    second = Document(path=tmp_path / "second.md", groups=("fms",), tables=experiment_tables.tables)
    monkeypatch.setattr(command, "DOCUMENTS", (first, second))
    (tmp_path / "results.json").write_text(document(REGRET))
    first.path.write_text("before\n<!-- table: regret -->\nold\n<!-- end -->\nafter\n")
    assert command.main([str(tmp_path / "results.json")]) == 0
    text = first.path.read_text()
    assert text.startswith("before\n<!-- table: regret -->\n\n| kernel")
    assert text.endswith("50% |\n\n<!-- end -->\nafter\n")
    assert "old" not in text
    assert load(first.kept) == first.rows() == REGRET
    assert first.plot.exists()
    assert not second.kept.exists(), "nothing of it was measured"
    assert command.main([]) == 0
    assert first.path.read_text() == text
    first.path.write_text("nowhere")
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "results.json")])
    assert "first.md: expected a place for the table 'regret', found none" in capsys.readouterr().err


def test_rows_of_one_document_leave_the_others_as_they_are(tmp_path, monkeypatch):
    place = "<!-- table: {} -->\nold\n<!-- end -->\n"
    one = Document(path=tmp_path / "one.md", groups=("regret",), tables=tables)
    other = Document(path=tmp_path / "other.md", groups=("fms",), tables=experiment_tables.tables)
    one.path.write_text(place.format("regret"))
    other.path.write_text(place.format("fms"))
    keep(REGRET, one.kept)
    monkeypatch.setattr(command, "DOCUMENTS", (one, other))
    (tmp_path / "results.json").write_text(document([each for each in EXPERIMENT if each.group == "fms"]))
    assert command.main(["--only", str(tmp_path / "results.json")]) == 0
    assert one.path.read_text() == place.format("regret")
    assert one.rows() == REGRET
    assert "| 32 | `optimized` |" in other.path.read_text()


@pytest.mark.parametrize(("number", "rows"), [(0, ROWS), (1, EXPERIMENT)])
def test_the_documents_are_what_the_command_makes_of_what_is_kept(number, rows):
    document = DOCUMENTS[number]
    text = document.path.read_text()
    for name in document.tables(rows):
        assert f"<!-- table: {name} -->" in text
    if not document.kept.exists():
        pytest.skip("nothing was measured yet")
    assert filled(document, text, document.rows()) == text
    if document.plot is not None:
        assert document.plot.read_text() == roofline(document.rows())
