"""An operator's function is called without torch's dispatcher where nobody watches, and with it where anybody does."""

import pytest
import torch

from ssd_kernels import get_op, library
from tests.correctness.operator_calls import CALLS
from tests.correctness.problems import DEVICE
from tests.correctness.seen import Seen

pytestmark = pytest.mark.correctness
OPERATORS = [operator for operator in CALLS if operator not in {"ssd", "mixer_step"}]


@pytest.mark.parametrize("operator", OPERATORS)
def test_where_nobody_watches_no_dispatcher_is_asked(operator, monkeypatch):
    function = get_op(operator, "triton")
    without, run = [], library._runs[operator]
    monkeypatch.setitem(library._runs, operator, lambda *args: without.append(operator) or run(*args))
    expected = function(**CALLS[operator]())
    assert without == [operator]
    with Seen() as seen:
        actual = function(**CALLS[operator]())
    ours = [each for each in seen.operators if each.namespace == "ssd_kernels"]
    assert (without, len(ours)) == ([operator], 1)
    assert torch.equal(*(each[0] if isinstance(each, tuple) else each for each in (actual, expected)))
    with torch.profiler.profile(acc_events=True) as profile:
        function(**CALLS[operator]())
    assert [each.count for each in profile.key_averages() if each.key == f"ssd_kernels::{operator}"] == [1]


@pytest.mark.parametrize("what", ["number", "negative"])
def test_what_the_dispatcher_converts_goes_through_it(what, monkeypatch):
    function = get_op("gated_rms_norm", "triton")
    changes = {"eps": 1} if what == "number" else {"y": torch._neg_view(torch.ones(2, 3, 8, device=DEVICE))}
    arguments = CALLS["gated_rms_norm"]() | changes
    monkeypatch.setitem(library._runs, "gated_rms_norm", None)
    actual = function(**arguments)
    expected = get_op("gated_rms_norm", "torch")(**arguments)
    torch.testing.assert_close(actual, expected)


def test_an_argument_of_a_wrong_type_is_refused_by_the_dispatcher():
    y = torch.ones(2, 8)
    with pytest.raises((TypeError, RuntimeError)):
        library.call("gated_rms_norm", y, y, y[0], "1e-5", 1)
