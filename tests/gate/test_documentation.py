"""What docs/kernelgate.md says: its examples run, and nothing that a user can set is left out."""

import inspect
import re
from argparse import SUPPRESS
from pathlib import Path

import pytest

from kernelgate import marker
from kernelgate.fixture import GateFixture
from kernelgate.metrics import Kind
from kernelgate.session import EXIT_CODES
from kernelgate.verdict import Outcome

pytestmark = pytest.mark.correctness

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "kernelgate.md").read_text()
EXAMPLES = re.findall(r"^```python test\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def rows():
    """The code that rows of the tables begin with; the first cell of a row may name several things."""
    first_cells = re.findall(r"^\| (`[^|]+`) \|", TEXT, re.MULTILINE)
    return {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_examples_run(project):
    pytest.importorskip("torch", reason="the examples use it")
    project.pytester.makepyfile(**{f"test_example_{number}": text for number, text in enumerate(EXAMPLES)})
    (project.path / "test_it.py").unlink()
    result = project.run("--benchmark-timer=time.perf_counter")  # the project's own clock moves by its own work only
    assert result.ret == 0
    result.assert_outcomes(passed=len(EXAMPLES))
    assert len(EXAMPLES) == 2


def test_every_option_and_ini_key_has_a_row(pytestconfig):
    parser = pytestconfig._parser
    options = [
        name
        for option in parser.getgroup("gate").options
        if option.attrs().get("help") != SUPPRESS
        for name in option.names()
    ]
    keys = [name for name in parser._inidict if name.startswith("gate_")]
    assert len(options) >= 3
    assert len(keys) >= 6
    documented = {name.split()[0] for name in rows()}
    assert set(options + keys) - documented == set()


def test_every_argument_of_declare_and_of_the_marker_is_named():
    declared = set(inspect.signature(GateFixture.declare).parameters) - {"self"}
    assert declared - rows() == set()
    marked = inspect.signature(marker._gate).parameters
    for name in marked:
        assert f"{name}=" in EXAMPLES[1], f"the example of the marker leaves out {name}"


def test_every_verdict_stands_with_its_exit_code():
    stated = {}
    for names, code in re.findall(r"^\| ([A-Z, ]+) \| .* \| (\d+) \|$", TEXT, re.MULTILINE):
        stated |= dict.fromkeys(names.split(", "), int(code))
    red = {Outcome.REGRESSED, Outcome.MISSING, Outcome.NEW}
    assert stated == {outcome: EXIT_CODES.get(outcome, 1 if outcome in red else 0) for outcome in Outcome}


def test_every_kind_of_metric_is_explained():
    for kind in Kind.__args__:
        assert f"*{kind}*" in TEXT
