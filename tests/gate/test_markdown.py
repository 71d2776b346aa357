import html
import re

import pytest
from hypothesis import example, given, strategies as st
from markdown_it import MarkdownIt  # of rich

from kernelgate.markdown import code, escape, markdown_report
from kernelgate.verdict import Outcome
from tests.gate.fakes import KERNEL, gate, row

pytestmark = pytest.mark.correctness


def cells(line):
    """The cells of a table's line, as the site that shows it finds them."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text):
    """Each table as one dictionary a line."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        header, rule, *lines = map(cells, block.splitlines())
        assert all(len(line) == len(header) for line in (rule, *lines))
        found.append([dict(zip(header, line, strict=True)) for line in lines])
    return found


def test_it_says_first_what_it_came_to_and_folds_what_is_the_same():
    worse = row(
        "t.py::test_worse[a|b]",
        Outcome.REGRESSED,
        slowdown=(0.024, 0.021, 0.027),
        reasons=["latency_s: 2 ms, was 1 ms"],
        kernels=[{**KERNEL, "n_regs": 255, "binary": "bb"}],
    )
    text = markdown_report(gate(row(), worse, missing=["t.py::test_gone"]), 1)
    assert text.startswith("**Red: 1 REGRESSED, 1 MISSING of 3 benchmarks.**\n\n|")
    (loud, gone), (same,) = tables(text)
    assert loud == {
        "verdict": "REGRESSED",
        "benchmark": "`t.py::test_worse[a|b]`",
        "latency": "1.234 ms",
        "was": "1.205 ms",
        "slowdown": "+2.4 % [+2.1, +2.7]",
        "finds": "2.0 %",
        "peak": "300 MiB",
        "error": "4.1e-05",
        "reason": r"latency\_s: 2 ms, was 1 ms<br>Triton binaries changed:<br>\_scan\_kernel: other binary, "
        "registers 128 → 255",
    }
    assert gone["verdict"] == "MISSING"
    assert gone["reason"] == "in the baseline, and did not run"
    assert same["benchmark"] == "`tests/test_it.py::test_work`"
    assert "reason" not in same
    assert text.index("<details><summary>1 SAME</summary>\n\n|") < text.index("::test_work") < text.index("</details>")
    assert "- compared with baseline 0001\\_base.json\n" in text
    assert "- machine class `test-box` (A \\| B &lt;fast&gt;)\n" in text
    assert "- toolchain python 3.11\n" in text
    assert text.endswith("\n")


def test_what_is_all_the_same_leaves_no_table_open():
    text = markdown_report(gate(row()))
    assert text.startswith("**Green: no regression in 1 benchmark.**\n\n<details><summary>1 SAME</summary>\n")


def test_a_changed_toolchain_is_named():
    assert "**toolchain changed**: python 2.7.18 → 3.11\n" in markdown_report(gate(row(toolchain_then="2.7.18")))


def test_it_has_no_emoji():
    text = markdown_report(gate(row(), row("t.py::test_worse", Outcome.REGRESSED), missing=["t.py::test_gone"]), 1)
    assert all(ord(character) < 0x2500 for character in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "`a\\|b`"),
        ("a`b", "``a`b``"),
        ("``a|`", "``` ``a\\|` ```"),
        ("*x* <b> _y_", "`*x* <b> _y_`"),
    ],
)
def test_names_survive_as_code(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b *c* `d` |e|", r"a\_b \*c\* \`d\` \|e\|"),
        ("<b> & @user", "&lt;b&gt; &amp; &#64;user"),
        ("[+0.1, +0.9]", "[+0.1, +0.9]"),
        ("[text](target)", r"[text\](target)"),
        ("two\nlines", "two lines"),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_text_survives_as_text(text, expected):
    assert escape(text) == expected


def shown(cell):
    """What a reader of the site sees of a table's cell, and whether it is set as code."""
    page = MarkdownIt("commonmark").enable("table").render(f"| a |\n| --- |\n| {cell} |\n")
    ((tag, text),) = re.findall(r"<td>(<code>)?(.*?)(?:</code>)?</td>", page)
    return html.unescape(text), bool(tag)


TEXT = st.text(st.sampled_from("ab1 `|\\*_[](){}<>&#@~!:-+\"'é短"), min_size=1).filter(str.strip)


@given(TEXT)
@example(r"a\|b`|``")
@example(" padded ")
@example("`")
def test_any_name_reads_as_itself(name):
    assert shown(code(name)) == (name, True)


@given(TEXT)
@example("[a](b)")
@example("&lt;")
def test_any_text_reads_as_itself(text):
    assert shown(escape(text)) == (" ".join(text.split()), False)


def test_a_run_writes_it_where_it_was_asked_to(project):
    project.record()
    project.environment(SLOWDOWN=2)
    assert project.compare("--gate-markdown=reports/gate.md").ret == 1
    text = (project.path / "reports" / "gate.md").read_text()
    assert text.startswith("**Red: 1 REGRESSED of 1 benchmark.**")
    ((worse,),) = tables(text)
    assert worse["benchmark"] == "`test_it.py::test_work`"
    assert worse["slowdown"].startswith("+100 % [+")
