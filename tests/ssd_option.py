"""`pytest --ssd package.module:function`: the suites run on a stranger's scan.

Properties that are parametrised over implementations (tests/correctness/test_ssd*.py) run on the stranger where they
would run on "triton", and so does the perf suite's scan; nothing else runs. What the stranger refuses with
NotImplementedError is left out: an example of a property, or a property as a whole, which then is skipped with the
reason. A run in which nothing was answered fails.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.errors import Unsatisfiable

OPTION = "--ssd"
STAND_IN = "tests.ssd_option:stranger"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("ssd", "other people's scans").addoption(
        OPTION, metavar="MODULE:FUNCTION", help="Run both suites on this scan, which has the signature of ours."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put the stranger in place, if there is one."""
    if asked := config.getoption(OPTION):
        from ssd_kernels import get_ssd  # not before Triton's interpreter is chosen

        try:
            get_ssd(asked)
        except (ImportError, ValueError) as error:
            raise pytest.UsageError(f"{OPTION} {asked}: {error}") from error
        _run.asked = asked
        left_out = (*settings().suppress_health_check, HealthCheck.filter_too_much)
        settings.register_profile("ssd", settings(), suppress_health_check=left_out, report_multiple_bugs=False)
        settings.load_profile("ssd")
        config.pluginmanager.register(_run)


def stranger(*args: Any, **kwargs: Any) -> Any:
    """The stranger's scan as the properties call it: watched, counted, and its refusals no failures."""
    from ssd_kernels import get_ssd
    from tests.what_ran import watched

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that ours warn of nothing is our rule, not the stranger's
            result, _run.ran = watched(get_ssd(_run.asked), *args, **kwargs)
    except NotImplementedError as error:
        _run.refusals.append(str(error))
        if hypothesis.currently_in_test_context():
            hypothesis.reject()
        pytest.skip(str(error))
    _run.answered += 1
    return result


class _Run:
    """One session with a stranger."""

    def __init__(self) -> None:
        self.asked = ""
        self.ran = ""
        self.answered = 0
        self.refusals: list[str] = []
        self.outcomes: list[pytest.TestReport] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Exchange implementations for the stranger before pytest reads the parameters."""
        if metafunc.module.__name__.rpartition(".")[2].startswith("test_ssd"):
            marks = metafunc.definition.own_markers
            marks[:] = [_exchanged(mark, self.asked) if mark.name == "parametrize" else mark for mark in marks]

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what does not run on the stranger."""
        kept = [item for item in items if self._concerns(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def _concerns(self, item: pytest.Item) -> bool:
        return self._is_property(item) or getattr(_parameters(item).get("problem"), "ssm", None) == self.asked

    def _is_property(self, item: pytest.Item) -> bool:
        return _parameters(item).get("name") == STAND_IN

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Turn a property that the stranger refused into a skipped one."""
        self.answered, self.ran, self.refusals = 0, "", []
        try:
            yield
        except NotImplementedError as error:
            pytest.skip(str(error))
        except Unsatisfiable:
            if not self.refusals:
                raise
        finally:
            item.user_properties += [("answered", self.answered), ("refused", len(self.refusals)), ("ran", self.ran)]
        if not self.answered and self._is_property(item):
            if not self.refusals:
                pytest.fail(f"passed without a call of {self.asked}")
            pytest.skip(self.refusals[-1])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Keep the smallest example that hypothesis found."""
        report = yield
        if call.when == "call" and call.excinfo and report.failed:
            notes = dict.fromkeys(getattr(call.excinfo.value, "__notes__", []))
            example = "\n".join(note for note in notes if "reproduce" not in note)
            report.user_properties += [("error", call.excinfo.exconly()), ("example", example)]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what came out, here and under xdist."""
        if report.when == "call" or report.failed or report.skipped:
            self.outcomes.append(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run that shows nothing about the stranger is no success."""
        ran = [report for report in self.outcomes if not report.skipped]
        if not ran and session.exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line for each property, and what each failed on."""
        count = Counter(report.outcome for report in self.outcomes)
        terminalreporter.section(f"{OPTION} {self.asked}")
        for report in sorted(self.outcomes, key=lambda report: report.nodeid):
            seen: dict[str, Any] = dict(report.user_properties)
            detail = (
                f": {seen['answered']} calls, {seen['refused']} refused, by {seen['ran']}" if seen.get("ran") else ""
            )
            if report.skipped and isinstance(report.longrepr, tuple):
                detail = f": {report.longrepr[2]}"
            terminalreporter.write_line(f"{report.outcome.upper()} {report.nodeid.rpartition('/')[2]}{detail}")
            for text in (seen.get("error", ""), seen.get("example", "")):
                for line in text.splitlines():
                    terminalreporter.write_line(f"    {line}")
        terminalreporter.write_line(
            f"{count['passed']} kept, {count['failed']} failed, {count['skipped']} not supported"
        )


def _exchanged(mark: pytest.Mark, asked: str) -> pytest.Mark:
    """A parametrisation over scans with the stranger for "triton", and for it alone; any other as it is."""
    names, rows = mark.args[:2]
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    if "name" not in names:
        return mark
    column = names.index("name")
    sets = [row if isinstance(row, type(pytest.param())) else pytest.param(*_as_row(row, names)) for row in rows]
    if not any(row.values[column] == "chunked" for row in sets):
        return mark
    new = [
        pytest.param(
            *(STAND_IN if i == column else value for i, value in enumerate(row.values)),
            marks=row.marks,
            id=str(row.id).replace("triton", asked) if row.id else None if len(names) > 1 else asked,
        )
        for row in sets
        if row.values[column] == "triton"
    ]
    return pytest.mark.parametrize(names, new, **mark.kwargs).mark


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


def _as_row(row: Any, names: list[str]) -> tuple[Any, ...]:
    return tuple(row) if len(names) > 1 else (row,)


_run = _Run()
