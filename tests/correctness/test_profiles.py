"""The profiles of conftest.py: by day the same examples; at night fresh ones, and what failed is kept and replayed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.correctness

ROOT = Path(__file__).resolve().parents[2]
TEST = """
from pathlib import Path
from hypothesis import given, strategies as st

@given(st.integers(0, 2**60))
def test_small(x):
    with Path("{log}").open("a") as log:
        print(x, file=log)
    assert x < {limit}
"""


@pytest.fixture
def drawn(tmp_path):
    """Run an inner test under a profile; the values it drew, in order."""

    def run(profile, limit):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        module = tmp_path / "test_drawn.py"
        module.write_text(TEST.format(log=log, limit=limit))
        env = {
            **os.environ, "HYPOTHESIS_PROFILE": profile, "HYPOTHESIS_DATABASE": str(tmp_path / "kept"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        for name in [name for name in env if name.startswith("PYTEST_XDIST")]:
            del env[name]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", str(module)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == int(limit < 2**60), done.stdout + done.stderr
        return [int(line) for line in log.read_text().split()]

    return run


def test_by_day_the_same_examples_are_drawn(drawn):
    assert drawn("ci", limit=2**61) == drawn("ci", limit=2**61)


def test_at_night_the_examples_are_fresh(drawn):
    first, second = drawn("nightly", limit=2**61), drawn("nightly", limit=2**61)
    assert len(first) >= 200
    assert first != second


def test_at_night_what_failed_before_is_tried_first(drawn):
    failed = drawn("nightly", limit=1000)
    assert min(x for x in failed if x >= 1000) == 1000
    assert drawn("nightly", limit=1000)[0] == 1000
