"""One run of the gate: find the baseline, start the processes, decide on each benchmark, record."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from kernelgate import record, stock
from kernelgate.baseline import Baseline, BaselineError, Entry, files, find, load
from kernelgate.fixture import GateFixture
from kernelgate.machine import Machine, detect
from kernelgate.marker import judged_times, policy_of
from kernelgate.metrics import Metric, merge, thin, write_metrics
from kernelgate.options import Options
from kernelgate.processes import Child, append_observation, run_child
from kernelgate.scope import in_scope
from kernelgate.verdict import Outcome, Verdict, judge

# Neither green nor an ordinary failure, so each has an exit code of its own.
EXIT_CODES = {Outcome.AMBIGUOUS: 10, Outcome.INSUFFICIENT: 11, Outcome.ENV: 12}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured benchmark, and what was decided about it where something was compared."""

    nodeid: str
    metrics: dict[str, Metric]
    samples: list[float]
    details: Mapping[str, Any]
    entry: Entry | None
    verdict: Verdict | None
    failed_checks: list[str]


@dataclass
class Gate:
    """The state of a run."""

    config: pytest.Config
    options: Options
    checks: Sequence[Any]
    commit: str = ""
    benchmarks: dict[str, pytest.Item] = field(default_factory=dict)
    deselected: set[str] = field(default_factory=set)
    baseline: Baseline | None = None
    children: list[Child] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    recorded: Path | None = None

    @property
    def comparing(self) -> bool:
        """Whether a comparison was asked for."""
        return self.options.compare is not None

    @property
    def is_child(self) -> bool:
        """Whether this process only observes, for the one that started it."""
        return self.options.child is not None

    @property
    def recording(self) -> bool:
        """Whether a new baseline was asked for."""
        return self.options.record is not None

    @cached_property
    def machine(self) -> Machine:
        """The machine, looked at when somebody asks: it may take importing torch."""
        return detect(self.options.machine)

    @property
    def local(self) -> bool:
        """Whether the class has no baseline under version control, so that this machine's own has to do."""
        if not self.comparing or self.options.storage is not None:
            return False
        return self.baseline is None or self.options.local in self.baseline.path.parents

    def prepare(self) -> None:
        """After collection, before the first test: everything that can be wrong without measuring."""
        if self.recording and not self.benchmarks:
            raise pytest.UsageError("--gate-record: no benchmark was selected, so there is nothing to record")
        if not (self.comparing or self.recording):
            return
        try:
            self.baseline = self._find_baseline()
        except BaselineError as error:
            raise pytest.UsageError(str(error)) from error
        if self.comparing and self.baseline is not None:
            stored = {nodeid: entry.stored for nodeid, entry in self.baseline.entries.items()}
            self.config._benchmarksession.compared_mapping = {Path(self.baseline.path.name): stored}  # type: ignore[attr-defined]
            stock.hide_table(self.config)

    def run_children(self, write_line: Callable[[str], None]) -> None:
        """Measure in all processes but this one. After one that did not complete no more are started."""
        total = self.options.processes
        for number in range(1, total):
            child = run_child(
                number,
                self.config.invocation_params.args,
                benchmarks=self.benchmarks.keys(),
                cwd=self.config.invocation_params.dir,
                timeout=self.options.timeout,
            )
            self.children.append(child)
            observed = f"{len(child.observations)} of {len(self.benchmarks)} benchmarks in {child.seconds:.1f} s"
            write_line(f"kernelgate: process {number} of {total}: {observed}, {child.exit_status}")
            if child.failed:
                write_line(f"kernelgate: output of process {number}:\n{child.output}")
            if not child.completed:
                break

    def refusal(self) -> str | None:
        """Why no benchmark can be measured in this run, if so."""
        for child in self.children:
            if not child.completed:
                return (
                    f"not measured: process {child.number} of {self.options.processes} ended with {child.exit_status}"
                )
        if stock.would_not_measure(self.config):
            return "not measured: benchmarks do not run in parallel; deselect them, or leave out -n"
        return None

    def conclude(self, item: pytest.Item, fixture: GateFixture) -> Row | None:
        """Combine a benchmark's observations and decide; fails where a process has none."""
        if fixture.observation is None or self.is_child:
            return None
        without = [child.number for child in self.children if item.nodeid not in child.observations]
        if without:
            numbers = ", ".join(map(str, without))
            pytest.fail(
                f"no result from process {numbers} of {self.options.processes}; its output is above", pytrace=False
            )
        observations = [child.observations[item.nodeid] for child in self.children] + [fixture.observation]
        merged = merge(observations)
        if len(observations) > 1 or self.recording:
            fixture.pool([thin(observation.samples) for observation in observations])
        fixture.extra_info.update(fixture.observation.details, metrics=write_metrics(merged))
        entry = self.baseline.entries.get(item.nodeid) if self.comparing and self.baseline is not None else None
        row = Row(
            nodeid=item.nodeid,
            metrics=merged,
            samples=fixture.stats.stats.data,
            details=fixture.observation.details,
            entry=entry,
            verdict=self._judge(item, fixture, merged, entry) if self.comparing else None,
            failed_checks=stock.failed_checks(self.checks, fixture, entry.stored) if entry is not None else [],
        )
        self.rows[item.nodeid] = row
        return row

    def hand_over(self, item: pytest.Item, fixture: GateFixture) -> None:
        """In a child: give the observation of a benchmark that passed to the process that started this one."""
        if self.options.child is not None and fixture.observation is not None and item.nodeid not in self.failed:
            append_observation(self.options.child, item.nodeid, fixture.observation)

    def finish(self, session: pytest.Session) -> None:
        """After the last test: find what should have run, and keep what was asked to be kept."""
        stopped = bool(session.shouldstop or session.shouldfail)
        entries = self.baseline.entries if self.baseline is not None else {}
        asked_for = set(in_scope(self.config, entries)) - self.deselected
        if self.comparing and not stopped and not self.config.getoption("lf", False):
            self.missing = sorted(asked_for - self.rows.keys() - self.failed)
        if session.testsfailed or stopped or self.missing or not self.rows:
            return
        if self.recording:
            kept = entries.keys() - asked_for - self.rows.keys()
            self.recorded = self._record(self.options.baselines, self.options.record or "", self.rows.keys(), kept)
        elif self.local and (unseen := self.rows.keys() - entries.keys()):
            self.recorded = self._record(self.options.local, "no baseline for this machine class", unseen, entries)

    def exit_code(self) -> int:
        """The code for outcomes that are neither green nor a failure, 0 without them."""
        return max((EXIT_CODES.get(row.verdict.outcome, 0) for row in self.rows.values() if row.verdict), default=0)

    def _judge(
        self, item: pytest.Item, fixture: GateFixture, merged: dict[str, Metric], entry: Entry | None
    ) -> Verdict:
        if entry is None:
            name = self.baseline.path.name if self.baseline is not None else "any baseline"
            return Verdict(outcome=Outcome.NEW, reasons=(f"not in {name}",))
        judged = sum(judged_times(benchmark) for benchmark in self.benchmarks.values())
        policy = policy_of(item, device=fixture.extra_info["device"], judged=judged)
        same_toolchain = entry.toolchain == fixture.extra_info["toolchain"]
        return judge(entry.metrics, merged, policy, same_toolchain=same_toolchain)

    def _record(self, root: Path, reason: str, measured: Collection[str], kept: Collection[str]) -> Path:
        return record.record(
            self.config,
            root / self.machine.name,
            machine=self.machine,
            reason=reason,
            commit=self.commit or "local",
            measured=measured,
            carried=[self.baseline.entries[nodeid].stored for nodeid in kept] if self.baseline is not None else [],
        )

    def _find_baseline(self) -> Baseline | None:
        """The baseline to compare with; None where the class has none and a local one is still to be made."""
        selector = self.options.compare or ""
        if selector.endswith(".json"):
            return self._load(Path(self.config.invocation_params.dir, selector))
        name = self.machine.name
        if self.recording:
            folders = [self.options.baselines / name]
        elif self.options.storage is None:
            folders = [self.options.baselines / name, self.options.local / name]
        else:
            stock_id = self.config._benchmarksession.machine_id  # type: ignore[attr-defined]
            folders = [self.options.storage / name, self.options.storage, self.options.storage / stock_id]
        folder = next((folder for folder in folders if files(folder)), None)
        if folder is None and self.comparing and (selector or self.options.storage is not None):
            raise BaselineError(f"no baseline for machine class {name} in {', '.join(map(str, folders))}")
        if folder is None:
            return None
        return self._load(find(folder, selector) if selector else files(folder)[-1])

    def _load(self, path: Path) -> Baseline:
        baseline = load(path)
        if baseline.machine_class != self.machine.name:
            raise BaselineError(
                f"{path}: recorded on machine class {baseline.machine_class}, and this is {self.machine.name}: "
                "times of different machines cannot be compared"
            )
        return baseline
