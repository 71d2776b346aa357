"""One run of the gate: find what to compare with, start the processes, decide on each benchmark, record."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from kernelgate import against, measuring, record, stock
from kernelgate.baseline import Baseline, BaselineError, Entry
from kernelgate.fixture import GateFixture
from kernelgate.looks import is_slower, looks, settled
from kernelgate.machine import Machine, detect
from kernelgate.marker import judged_times, policy_of
from kernelgate.metrics import Metric, Observation, merge, thin, write_metrics
from kernelgate.options import Options, tolerance
from kernelgate.processes import Child, Unobserved
from kernelgate.reference import find_baseline, measured_entry
from kernelgate.replicate import Pool, Replication
from kernelgate.scope import in_scope
from kernelgate.verdict import Outcome, Verdict, disturbances, judge

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
    base_commit: str = ""
    replication: Replication | None = None
    results: Path | None = None  # of this process, if it observes for another one
    rows: dict[str, Row] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    recorded: Path | None = None
    self_tested: list[Path] = field(default_factory=list)
    _red: set[str] = field(default_factory=set)

    @property
    def comparing(self) -> bool:
        """Whether a comparison was asked for."""
        return self.options.compare is not None or self.options.against is not None

    @property
    def is_child(self) -> bool:
        """Whether this process only observes, for the one that started it."""
        return self.options.child is not None or self.options.template is not None

    @property
    def recording(self) -> bool:
        """Whether a new baseline was asked for."""
        return self.options.record is not None

    @property
    def reference(self) -> str:
        """What is compared with, in words; empty where nothing is."""
        if self.options.against is not None:
            return f"commit {self.base_commit[:10]} ({self.options.against}), alternating with it on the same device"
        if self.baseline is None:
            return ""
        return f"{'local baseline' if self.local else 'baseline'} {self.baseline.path.name}"

    @cached_property
    def machine(self) -> Machine:
        """The machine, looked at when somebody asks: it may take importing torch."""
        return detect(self.options.machine)

    @property
    def local(self) -> bool:
        """Whether the class has no baseline under version control, so that this machine's own has to do."""
        if self.options.compare is None or self.options.storage is not None:
            return False
        return self.baseline is None or self.options.local in self.baseline.path.parents

    @property
    def new_passes(self) -> bool:
        """Whether a benchmark that nothing can be compared with passes: there is no stored baseline to be extended."""
        return self.local or self.options.against is not None

    @property
    def pool(self) -> Pool:
        """What the processes of the current tree showed."""
        return self.replication.pools[against.CURRENT] if self.replication is not None else Pool()

    @property
    def children(self) -> Sequence[Child]:
        """The processes that measured, as they ended."""
        return self.replication.children if self.replication is not None else ()

    def prepare(self) -> None:
        """After collection, before the first test: everything that can be wrong without measuring."""
        if self.recording and not self.benchmarks:
            raise pytest.UsageError("--gate-record: no benchmark was selected, so there is nothing to record")
        if self.options.against is not None:
            self.base_commit = against.resolve(self.config.rootpath, self.options.against)
        elif self.comparing or self.recording:
            try:
                self.baseline = find_baseline(self.config, self.options, self.machine)
            except BaselineError as error:
                raise pytest.UsageError(str(error)) from error
        if self.comparing and self.baseline is not None:
            stored = {nodeid: entry.stored for nodeid, entry in self.baseline.entries.items()}
            self.config._benchmarksession.compared_mapping = {Path(self.baseline.path.name): stored}  # type: ignore[attr-defined]
        if self.comparing:
            stock.hide_table(self.config)

    def replicate(self, write_line: Callable[[str], None]) -> None:
        """Measure in other processes, all before the first test, until there is nothing left to decide."""
        with measuring.prepared(
            self.config,
            self.options,
            self.machine,
            looks=self._looks,
            benchmarks=self.benchmarks.keys(),
            base_commit=self.base_commit,
            write_line=write_line,
        ) as self.replication:
            self.replication.run(self.benchmarks.keys(), self._decided)
            if self.options.selftest and not self.replication.refusal:
                self.self_tested = measuring.measure_plants(
                    self.replication, self.benchmarks.keys(), self.options, self.machine, self.config.rootpath
                )

    def refusal(self) -> str | None:
        """Why no benchmark can be measured in this run, if so."""
        if self.replication is not None and self.replication.refusal:
            return self.replication.refusal
        if stock.would_not_measure(self.config):
            return "not measured: benchmarks do not run in parallel; deselect them, or leave out -n"
        return None

    def unobserved(self, nodeid: str) -> Unobserved | None:
        """Why a replicated benchmark has no verdict, if so: a process failed or skipped it."""
        found = self.pool.unobserved.get(nodeid)
        if found is None and not self.pool.of(nodeid):
            found = Unobserved(skipped=False, reason="no process observed it: does it call benchmark(...)?")
        return found

    def conclude(self, item: pytest.Item, fixture: GateFixture) -> Row | None:
        """Combine a benchmark's observations and decide."""
        if self.is_child:
            return None
        observations = self.pool.of(item.nodeid) if self.replication is not None else []
        if not observations and fixture.observation is not None:
            observations = [fixture.observation]
        if not observations:
            return None
        merged = merge(observations)
        if self.replication is not None or self.recording:
            fixture.pool([thin(observation.samples) for observation in observations])
        details = _common_details(observations)
        fixture.extra_info.update(details, metrics=write_metrics(merged))
        entry, verdict = self._verdict(item)
        row = Row(
            nodeid=item.nodeid,
            metrics=merged,
            samples=fixture.stats.stats.data,
            details=details,
            entry=entry,
            verdict=verdict,
            failed_checks=stock.failed_checks(self.checks, fixture, entry.stored) if entry and entry.stored else [],
        )
        self.rows[item.nodeid] = row
        return row

    def finish(self, session: pytest.Session) -> None:
        """After the last test: find what should have run, and keep what was asked to be kept."""
        stopped = bool(session.shouldstop or session.shouldfail)
        entries = self.baseline.entries if self.baseline is not None else {}
        asked_for = set(in_scope(self.config, entries))
        if self.options.against is not None and self.replication is not None:
            asked_for = set(self.replication.pools[against.BASE].collected)
        asked_for -= self.deselected
        if self.comparing and not stopped and not self.config.getoption("lf", False):
            self.missing = sorted(asked_for - self.rows.keys() - self.failed)
        if session.testsfailed or stopped or self.missing or not self.rows:
            return
        if self.recording and self.exit_code():
            return  # ENV: what this machine is now is not what its baselines describe
        if self.recording:
            kept = entries.keys() - asked_for - self.rows.keys()
            self.recorded = self._record(self.options.baselines, self.options.record or "", self.rows.keys(), kept)
        elif self.local and (unseen := self.rows.keys() - entries.keys()):
            self.recorded = self._record(self.options.local, "no baseline for this machine class", unseen, entries)

    def exit_code(self) -> int:
        """The code for outcomes that are neither green nor a failure, 0 without them."""
        return max((EXIT_CODES.get(row.verdict.outcome, 0) for row in self.rows.values() if row.verdict), default=0)

    @property
    def _looks(self) -> tuple[int, ...]:
        return looks(self.options.processes) if self.comparing else (self.options.processes,)

    def _decided(self, nodeid: str) -> bool:
        """Whether a look at a benchmark needs no further one. A red time does, once."""
        if not self.comparing or not self.pool.of(nodeid):
            return False
        _, verdict = self._verdict(self.benchmarks[nodeid])
        if verdict is None:
            return False
        seen = nodeid in self._red
        if is_slower(verdict):
            self._red.add(nodeid)
        return settled(verdict, seen_slower=seen)

    def _verdict(self, item: pytest.Item) -> tuple[Entry | None, Verdict | None]:
        """What a benchmark is compared with, and what its observations so far come to."""
        current = self.pool.observations.get(item.nodeid, {})
        if not current:  # measured in this process
            observation = item.funcargs["benchmark"].observation  # type: ignore[attr-defined]
            current = {0: observation}
        base: dict[int, Observation] = {}
        if self.options.against is not None and self.replication is not None:
            base = self.replication.pools[against.BASE].observations.get(item.nodeid, {})
            current = {number: found for number, found in current.items() if number in base} or current
        merged = merge([current[number] for number in sorted(current)])
        details = next(iter(current.values())).details
        if not self.comparing:
            return None, self._check_state(merged, details["device"])
        if self.options.against is not None:
            paired = [base[number] for number in sorted(base) if number in current]
            entry = measured_entry(paired)
            absent = f"not in {self.base_commit[:10]}, or it fails there"
        else:
            entry = self.baseline.entries.get(item.nodeid) if self.baseline is not None else None
            absent = f"not in {self.baseline.path.name if self.baseline is not None else 'any baseline'}"
        if entry is None:
            return None, Verdict(outcome=Outcome.NEW, reasons=(absent,))
        shares = sum(judged_times(benchmark) for benchmark in self.benchmarks.values())
        policy = policy_of(
            item,
            device=details["device"],
            judged=shares,
            looks=len(self._looks),
            paired=self.options.against is not None,
        )
        return entry, judge(entry.metrics, merged, policy, same_toolchain=entry.toolchain == details["toolchain"])

    def _check_state(self, merged: dict[str, Metric], device: str) -> Verdict | None:
        """ENV where a baseline would be recorded on a disturbed machine, or in another state than the one before it."""
        if not self.recording:
            return None
        found = disturbances(merged)
        if self.baseline is not None:
            allowed = tolerance(self.config, "gate_env_tolerance", device)
            found += record.moved_ceilings(self.baseline, merged, device, allowed)
        return Verdict(outcome=Outcome.ENV, reasons=tuple(found)) if found else None

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


def _common_details(observations: Sequence[Observation]) -> Mapping[str, Any]:
    """The details of the last observation, and no device's identity where several measured."""
    details = dict(observations[-1].details)
    if len({each.details.get("device_id") for each in observations}) > 1:
        del details["device_id"]
    return details
