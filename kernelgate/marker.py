"""The `gate` marker: how one benchmark is judged."""

import inspect
from collections.abc import Mapping
from typing import Any

import pytest

from kernelgate.metrics import EAGER, LATENCY
from kernelgate.options import tolerance
from kernelgate.verdict import ALPHA, MISSED, Policy

DESCRIPTION = (
    "gate(*, margin=None, mde=None, allow=None, eager_margin=None): how a benchmark is judged: the slowdown that "
    "counts as none, the further slowdown that must be found, how much exact metrics may worsen, by name, and the "
    "margin of eager latency, which is not judged without one."
)


def check_marker(item: pytest.Item) -> None:
    """Reject a marker that cannot mean anything.

    Raises:
        pytest.UsageError: An argument is unknown or has a bad value.
    """
    marker = item.get_closest_marker("gate")
    if marker is None:
        return
    try:
        inspect.signature(_gate).bind(*marker.args, **marker.kwargs)
    except TypeError as error:
        raise pytest.UsageError(f"{item.nodeid}: gate marker: {error}; expected {DESCRIPTION}") from error
    for name, value in marker.kwargs.items():
        values = value if name == "allow" else {name: value}
        if value is None:
            continue
        if not isinstance(values, Mapping):
            raise pytest.UsageError(
                f"{item.nodeid}: gate marker: allow: expected metric names and amounts, found {value!r}"
            )
        for key, amount in values.items():
            if not isinstance(amount, int | float) or amount < 0:
                raise pytest.UsageError(
                    f"{item.nodeid}: gate marker: {key}: expected a number of at least 0, found {amount!r}"
                )


def judged_times(item: pytest.Item) -> int:
    """How many noisy metrics of a benchmark are judged: its share of the correction for many comparisons."""
    return len([LATENCY] if _arguments(item).get("eager_margin") is None else [LATENCY, EAGER])


def policy_of(item: pytest.Item, *, device: str, judged: int, looks: int = 1, paired: bool = False) -> Policy:
    """How a benchmark is judged.

    Args:
        item: The test.
        device: Where it ran.
        judged: Noisy metrics judged in the whole run. They share the probability of a false alarm.
        looks: Times that each of them is looked at, at most. The looks share either error's probability.
        paired: Both sides were measured next to each other.
    """
    arguments = _arguments(item)
    config = item.config
    margin, mde = arguments.get("margin"), arguments.get("mde")
    return Policy(
        margin=tolerance(config, "gate_margin", device, paired=paired) if margin is None else margin,
        mde=tolerance(config, "gate_mde", device, paired=paired) if mde is None else mde,
        alpha=ALPHA / (judged * looks),
        missed=MISSED / looks,
        allow=arguments.get("allow") or {},
        eager_margin=arguments.get("eager_margin"),
        env_tolerance=tolerance(config, "gate_env_tolerance", device, paired=paired),
        paired=paired,
    )


def _gate(*, margin: Any = None, mde: Any = None, allow: Any = None, eager_margin: Any = None) -> None:
    """The marker's signature."""


def _arguments(item: pytest.Item) -> Mapping[str, Any]:
    marker = item.get_closest_marker("gate")
    return marker.kwargs if marker else {}
