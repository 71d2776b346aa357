import pytest

from tests.stock.differences import differences
from tests.stock.suite import Outcome, unpack

pytestmark = pytest.mark.correctness

PASSED, FAILED, SKIPPED = Outcome("passed"), Outcome("failed", "AssertionError"), Outcome("skipped")


@pytest.mark.parametrize(
    ("before", "now", "listed"),
    [(PASSED, PASSED, False), (PASSED, FAILED, True), (FAILED, FAILED, False), (FAILED, PASSED, False)],
)
def test_what_the_plugin_changes_on_purpose_or_not_at_all_is_no_difference(before, now, listed):
    assert differences({"a": before}, {"a": now}, {"a": "why"} if listed else {}) == []


@pytest.mark.parametrize(
    ("without", "loaded", "listed", "problem"),
    [
        ({"a": PASSED}, {"a": FAILED}, {}, "fails only with the plugin: a\nAssertionError"),
        ({"a": PASSED}, {"a": PASSED}, {"a": "why"}, "listed as one that cannot apply, but passed: a"),
        ({"a": PASSED}, {"a": SKIPPED}, {}, "passed without the plugin, skipped with it: a"),
        ({"a": PASSED}, {}, {}, "runs only without the plugin: a"),
        ({}, {"a": PASSED}, {}, "runs only with the plugin: a"),
        ({}, {}, {"a": "why"}, "listed, but there is no such test: a"),
    ],
)
def test_everything_else_is_told(without, loaded, listed, problem):
    assert differences(without, loaded, listed) == [problem]


def test_another_file_is_not_unpacked(tmp_path):
    sdist = tmp_path / "pytest_benchmark.tar.gz"
    sdist.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"expected sha256 c1ee70a5.*, found "):
        unpack(sdist, tmp_path)
