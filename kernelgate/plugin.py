"""The plugin's hooks. What they do is in the other modules of the package."""

from collections.abc import Generator
from typing import Any

import pytest
import pytest_benchmark.plugin
from _pytest.runner import pytest_runtest_protocol as run_once

from kernelgate import child, marker, options, processes, provenance, record, report, selftest_report, stock, verdicts
from kernelgate.fixture import GateFixture
from kernelgate.session import Gate

GATE = pytest.StashKey[Gate]()
_CHECKS = pytest.StashKey[list[Any]]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the gate's own options, and mend one of the stock plugin, whichever of the two is loaded first."""
    options.add_options(parser)
    pluginmanager.register(stock.FractionsInChecks(parser))


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Read the options that the stock parser reads wrongly."""
    early_config.stash[_CHECKS] = stock.all_checks(args)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Make a child a child before any plugin is configured."""
    if config.getoption("gate_child") or config.getoption("gate_template"):
        processes.neutralise(config.option)
        processes.narrow(config)
        # What failed last decides what the user's next run selects, not what the next child does.
        for name in ("cacheprovider", "stepwise"):
            config.pluginmanager.unregister(name=name)
        if coverage := config.pluginmanager.get_plugin("_cov"):
            # Its data join the parent's, which reports on all of them and asks for a least coverage.
            coverage.options.cov_report, coverage.options.cov_fail_under = {}, None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take over from the stock plugin, which is configured last."""
    if not config.pluginmanager.is_registered(pytest_benchmark.plugin):
        raise pytest.UsageError("kernelgate builds on pytest-benchmark, which is switched off")
    config.addinivalue_line("markers", marker.DESCRIPTION)
    chosen = options.read_options(config)
    checks = config.stash.get(_CHECKS, [])
    if checks and chosen.compare is None and chosen.child is None and chosen.template is None:
        raise pytest.UsageError("--benchmark-compare-fail needs --benchmark-compare")
    gate = config.stash[GATE] = Gate(config, chosen, checks)
    if chosen.record is not None:
        try:
            gate.commit = provenance.clean_commit(config.rootpath)
        except provenance.ProvenanceError as error:
            raise pytest.UsageError(f"--gate-record: {error}") from error
    # Loading, comparing and checking are the gate's: the stock plugin does them too late, and with warnings.
    config.option.benchmark_compare = []
    config.option.benchmark_compare_fail = None
    stock.install_fixture(config)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember what the user chose not to run: it is not missing."""
    if items:
        items[0].config.stash[GATE].deselected.update(item.nodeid for item in items)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Find the selected benchmarks. A child runs what its parent selected, and nothing else."""
    gate = config.stash[GATE]
    gate.benchmarks = {item.nodeid: item for item in items if "benchmark" in getattr(item, "fixturenames", ())}
    for item in gate.benchmarks.values():
        marker.check_marker(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Measure in other processes first, so that every test only has to assert its own verdict."""
    gate = session.config.stash[GATE]
    broken = session.testsfailed and not session.config.option.continue_on_collection_errors
    if gate.is_child and not broken:
        child.begin(gate, session)
    if session.config.option.collectonly or broken or gate.is_child or stock.under_xdist(session.config):
        return (yield)
    gate.prepare()
    if gate.benchmarks and gate.options.processes > 1:
        gate.replicate(session.config.get_terminal_writer().line)
    result = yield
    gate.finish(session)
    for nodeid in gate.missing:
        report.log_missing(session.config, nodeid)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Assert the verdict of a benchmark that other processes ran, instead of running it once more."""
    gate = item.config.stash[GATE]
    if item.nodeid not in gate.benchmarks:
        return None
    if gate.is_child:
        child.note_start(gate, item)
    if gate.replication is None:
        return run_once(item, nextitem)  # not None: another plugin would run it again until it is green
    verdicts.run_protocol(gate, item)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a benchmark that cannot be measured, before it costs time."""
    gate = item.config.stash[GATE]
    if item.nodeid in gate.benchmarks and (refusal := gate.refusal()):
        pytest.fail(refusal, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Let a benchmark that passed its own assertions assert its verdict."""
    result = yield
    fixture = getattr(item, "funcargs", {}).get("benchmark")
    if isinstance(fixture, GateFixture):
        row = item.config.stash[GATE].conclude(item, fixture)
        if row is not None:
            report.assert_verdict(row, item.config.stash[GATE])
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what failed, in whatever phase, from being saved and from being handed over by a child."""
    report = yield
    gate, fixture = item.config.stash[GATE], getattr(item, "funcargs", {}).get("benchmark")
    if report.failed:
        gate.failed.add(item.nodeid)
        if isinstance(fixture, GateFixture):
            fixture.has_error = True
    if gate.is_child and item.nodeid in gate.benchmarks:
        child.note_report(gate, item, report, fixture)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn green into the exit code of what could not be decided."""
    if exitstatus == pytest.ExitCode.OK:
        session.exitstatus = session.config.stash[GATE].exit_code() or exitstatus
    report.write_files(session.config.stash[GATE], session)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured and decided."""
    gate = config.stash[GATE]
    if not (gate.is_child or config.option.collectonly):
        report.write_report(terminalreporter, gate)
        if gate.self_tested:
            selftest_report.write(terminalreporter, gate, gate.self_tested)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Name the device, and leave out the clock of the moment, which differs in every run."""
    machine_info["device"] = config.stash[GATE].machine.device
    for noise in ("hz_actual", "hz_actual_friendly"):
        machine_info.get("cpu", {}).pop(noise, None)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Make a saved run one that can be compared with, and add the verdicts to a report."""
    gate = config.stash[GATE]
    verdicts = {nodeid: report.verdict_json(row.verdict) for nodeid, row in gate.rows.items() if row.verdict}
    record.stamp(output_json, gate.machine, verdicts=verdicts)
