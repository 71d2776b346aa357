"""The places where pytest-benchmark, left alone, would let a regression pass."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import pytest_benchmark.plugin
from pytest_benchmark.utils import NameWrapper, PercentageRegressionCheck, parse_compare_fail

from kernelgate.fixture import GateFixture

STORAGE_DEFAULT = "file://./.benchmarks"
_COMPARE_FAIL = "--benchmark-compare-fail"
_FRACTION = re.compile(r"(?P<field>min|max|mean|median|stddev|iqr):(?P<percentage>\d*\.\d+)%")


def install_fixture(config: pytest.Config) -> None:
    """Let the stock `benchmark` fixture make our class, until pytest is done.

    A fixture of the same name in an installed plugin would lose to the stock one, and without a word.
    """
    stock = pytest_benchmark.plugin.BenchmarkFixture
    pytest_benchmark.plugin.BenchmarkFixture = GateFixture
    config.add_cleanup(lambda: setattr(pytest_benchmark.plugin, "BenchmarkFixture", stock))


def make_fixture(item: pytest.Item) -> GateFixture:
    """The `benchmark` fixture of a test that other processes ran, with statistics still to be filled in."""
    session = item.config._benchmarksession  # type: ignore[attr-defined]
    marker = item.get_closest_marker("benchmark")
    options = {**session.options, **(marker.kwargs if marker else {})}
    if not hasattr(options["timer"], "target"):
        options["timer"] = NameWrapper(options["timer"])
    fixture = GateFixture(
        item, add_stats=session.benchmarks.append, logger=session.logger, warner=item.warn, disabled=False, **options
    )
    fixture._make_stats(1)
    return fixture


class FractionsInChecks:
    """Lets --benchmark-compare-fail take fractions of a per cent; the stock option takes whole ones."""

    def __init__(self, parser: pytest.Parser) -> None:
        self._parser = parser

    def pytest_plugin_registered(self, plugin: object) -> None:
        """Mend the option once it exists; called for plugins registered before this one as well."""
        if plugin is pytest_benchmark.plugin:
            for option in self._parser.getgroup("benchmark").options:
                if _COMPARE_FAIL in option.names():
                    option.attrs()["type"] = parse_check


def parse_check(text: str) -> Any:
    """A --benchmark-compare-fail expression, such as ``mean:2.5%``."""
    if match := _FRACTION.fullmatch(text):
        return PercentageRegressionCheck(match["field"], float(match["percentage"]))
    return parse_compare_fail(text)


def all_checks(arguments: Sequence[str]) -> list[Any]:
    """Every --benchmark-compare-fail expression of a command line; the stock option keeps only the last ones."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(_COMPARE_FAIL, nargs="+", action="extend", type=parse_check, default=[], dest="checks")
    checks: list[Any] = parser.parse_known_args(arguments)[0].checks
    return checks


def failed_checks(checks: Sequence[Any], fixture: GateFixture, stored: Mapping[str, Any]) -> list[str]:
    """What the stock checks have to say about a measured benchmark."""
    return [message for check in checks if (message := check.fails(fixture.stats, stored["stats"]))]


def under_xdist(config: pytest.Config) -> bool:
    """Whether tests run in parallel, which no measurement survives."""
    return config.getoption("dist", "no") != "no" or hasattr(config, "workerinput")


def would_not_measure(config: pytest.Config) -> bool:
    """Whether the stock plugin disabled benchmarks without being told to, as it does under xdist."""
    told = config.option.benchmark_disable and not config.option.benchmark_enable
    return bool(config._benchmarksession.disabled) and not told  # type: ignore[attr-defined]


def hide_table(config: pytest.Config) -> None:
    """Leave out the stock table, which the gate's says better, unless it carries what the gate's does not."""
    option = config.option
    if not (option.benchmark_verbose or option.benchmark_histogram or option.benchmark_cprofile):
        config._benchmarksession.quiet = True  # type: ignore[attr-defined]
