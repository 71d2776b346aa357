"""Other people's scans: what `--ssd` runs, refuses and reports, and how a fallback is found."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssd_kernels import get_ssd
from tests.correctness.problems import Problem
from tests.ssd_option import STAND_IN, _exchanged, pytest_configure
from tests.what_ran import watched

pytestmark = pytest.mark.correctness

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = Problem(batch=1, seqlen=3, nheads=1, ngroups=1, headdim=2, d_state=2, chunk_size=4)

STRANGERS = """
from ssd_kernels.chunked import chunked
RUNS = ("strangers:_scan",)

def _scan(x, **_):
    return x

def honest(x, **options):
    if options["chunk_size"] == 3:
        raise NotImplementedError("chunk_size: 3 is too odd")
    return _scan(x)

def refusing(x, **_):
    raise NotImplementedError("x: never")

def idle(x, **options):
    return x

def helped(x, **options):
    _scan(x)
    return chunked(x, **options)
"""
PROPERTIES = """
import pytest, torch
from hypothesis import given, strategies as st
from ssd_kernels import get_ssd

names = pytest.mark.parametrize("name", ["chunked", "triton"])
INPUTS = dict(dt=torch.ones(1, 2, 1), A=-torch.ones(1), B=torch.ones(1, 2, 1, 1), C=torch.ones(1, 2, 1, 1))

@names
@given(chunk_size=st.integers(2, 4))
def test_drawn(name, chunk_size):
    get_ssd(name)(torch.ones(1, 2, 1, 1), **INPUTS, chunk_size=chunk_size)

@names
@pytest.mark.parametrize("chunk_size", [3, 4])
def test_given(name, chunk_size):
    get_ssd(name)(torch.ones(1, 2, 1, 1), **INPUTS, chunk_size=chunk_size)

@names
@given(chunk_size=st.integers(2, 4))
def test_wrong(name, chunk_size):
    get_ssd(name)(torch.ones(1, 2, 1, 1), **INPUTS, chunk_size=chunk_size)
    assert chunk_size < 4

def test_of_nobody():
    assert False
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run the properties above, or some of them, on one of the strangers above."""
    pytester.makepyfile(strangers=STRANGERS, test_ssd_small=PROPERTIES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), str(ROOT), str(ROOT / "kernels")]))

    def run_on(stranger, *arguments):
        return pytester.runpytest_subprocess(
            "-p", "tests.ssd_option", "-p", "no:cacheprovider", "--ssd", f"strangers:{stranger}", *arguments
        )

    return run_on


def test_a_stranger_takes_the_place_of_triton_and_what_it_refuses_is_left_out(run):
    result = run("honest")
    result.assert_outcomes(passed=2, skipped=1, failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "PASSED *test_drawn?strangers:honest?: * calls, * refused, by strangers:_scan",
            "SKIPPED *test_given?3-strangers:honest?: *chunk_size: 3 is too odd",
            "PASSED *test_given?4-strangers:honest?: 1 calls, 0 refused, by strangers:_scan",
            "FAILED *test_wrong*",
            "*chunk_size=4*",
            "2 kept, 1 failed, 1 not supported",
        ]
    )


def test_a_run_that_shows_nothing_fails(run):
    result = run("refusing", "-k", "drawn or given")
    result.assert_outcomes(skipped=3, deselected=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("asked", ["ssd_kernels.chunked:absent", "no_such_package:ssd", "mamba"])
def test_a_stranger_that_is_not_there_is_an_error_of_usage(asked):
    with pytest.raises(pytest.UsageError, match=f"--ssd {asked}: "):
        pytest_configure(SimpleNamespace(getoption=lambda _: asked))


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    tmp_path.joinpath("strangers.py").write_text(STRANGERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("strangers")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("idle", r"strangers:idle fell back to another path: strangers:_scan did not run"),
        ("helped", r"strangers:helped fell back to ssd_kernels\.chunked:chunked"),
    ],
)
def test_another_path_than_the_declared_one_is_an_error(strangers, name, message):
    import strangers as module

    with pytest.raises(RuntimeError, match=message):
        watched(getattr(module, name), **PROBLEM.inputs())


def test_what_ran_is_what_was_seen(strangers):
    import strangers as module

    inputs = PROBLEM.inputs()
    y, ran = watched(module.honest, **inputs)
    assert torch.equal(y, inputs["x"])
    assert ran == "strangers:_scan"
    assert watched(get_ssd("chunked"), **inputs)[1] == "ssd_kernels.chunked:chunked"


def test_only_parametrisations_over_scans_are_exchanged():
    other = pytest.mark.parametrize("name", ["torch", "triton"]).mark
    assert _exchanged(other, "a:b") is other
    unnamed = pytest.mark.parametrize("chunk_size", [1, 2]).mark
    assert _exchanged(unnamed, "a:b") is unnamed
    rows = [pytest.param("chunked", 1, id="chunked-1"), pytest.param("triton", 2, id="triton-2")]
    (_, (row,)) = _exchanged(pytest.mark.parametrize(("name", "size"), rows).mark, "a:b").args
    assert row.values == (STAND_IN, 2)
    assert row.id == "a:b-2"
