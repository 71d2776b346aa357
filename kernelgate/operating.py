"""The gate's operating curve: what it would have decided on processes that were recorded.

A gate is drawn by drawing whole processes, with replacement, in pairs of neighbours of one record, and decided look
by look as `--gate-against` does. Unchanged neighbours give false alarms. A slowdown is planted by what the record's
planted processes showed of it in the median, so that the spread between processes stays the unchanged one.
"""

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kernelgate.looks import is_slower, looks, settled
from kernelgate.metrics import LATENCY, Metric, relative_spread
from kernelgate.selftest import EXACT_PLANTS, TIME_PLANTS, UNCHANGED, Record
from kernelgate.units import percent
from kernelgate.verdict import ALPHA, MISSED, Outcome, Policy, Verdict, compare_exact, judge

SUITE = 40  # what the correction is made for: the most benchmarks that a gated list holds
GATES = 1000


@dataclass
class Curve:
    """Of one benchmark.

    Attributes:
        spread: Between processes, the largest of the records.
        outcomes: Of drawn gates of the unchanged tree.
        found: The share of drawn gates that call a planted slowdown REGRESSED, by plant, with its measured size.
        exact: Whether a planted exact fault is REGRESSED in every record that has it, by plant.
        detectable: The median of the minimum detectable effects that were printed.
    """

    spread: float
    outcomes: Counter[str] = field(default_factory=Counter)
    found: dict[str, tuple[float, float]] = field(default_factory=dict)
    exact: dict[str, bool] = field(default_factory=dict)
    detectable: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OperatingCurve:
    """Of a suite: the curves of its benchmarks, and in how many of the drawn gates anything was REGRESSED."""

    benchmarks: dict[str, Curve]
    gates: int
    alarmed: int
    processes: int
    devices: int


def operating_curve(
    records: Sequence[Record], *, margin: float, mde: float, processes: int = 20, gates: int = GATES, seed: int = 0
) -> OperatingCurve:
    """Draw gates from records.

    Args:
        records: Of machines of one class.
        margin: As in :class:`kernelgate.verdict.Policy`.
        mde: As in :class:`kernelgate.verdict.Policy`.
        processes: Pairs of processes that a gate may take.
        gates: How many are drawn; for a planted slowdown a tenth of them for each benchmark.
        seed: Of the draws.
    """
    generator = random.Random(seed)  # noqa: S311 -- a simulation
    plan = looks(processes)
    policy = Policy(
        margin=margin,
        mde=mde,
        alpha=ALPHA / (SUITE * len(plan)),
        missed=MISSED / len(plan),
        env_tolerance=1.0,
        paired=True,
    )
    usable = [record for record in records if record.processes > 1]
    names = sorted({nodeid for record in usable for nodeid in record.plants[UNCHANGED]})
    curves = {name: Curve(spread=_spread(usable, name)) for name in names}
    alarmed = 0
    printed: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(gates):
        record = generator.choice(usable)
        pairs = _draw(record, processes, generator)
        any_red = False
        for name, metrics in record.plants[UNCHANGED].items():
            verdict = _decide(metrics[LATENCY].values, pairs, 1.0, plan, policy)
            curves[name].outcomes[verdict.outcome] += 1
            printed[name].append(verdict.detectable or 0.0)
            any_red |= verdict.outcome == Outcome.REGRESSED
        alarmed += any_red
    for name, curve in curves.items():
        curve.detectable = statistics.median(printed[name] or [0.0])
        _try_plants(curve, name, usable, plan, policy, gates // 10, generator)
    devices = {str(record.facts.get("device_id", index)) for index, record in enumerate(usable)}
    return OperatingCurve(
        benchmarks=curves,
        gates=gates,
        alarmed=alarmed,
        processes=sum(record.processes for record in usable),
        devices=len(devices),
    )


def table(curve: OperatingCurve) -> list[str]:
    """The curve as lines of text."""
    plants = [plant for plant in TIME_PLANTS if any(plant in each.found for each in curve.benchmarks.values())]
    width = max((len(name.partition("::")[2]) for name in curve.benchmarks), default=0)
    headings = "".join(f"{'+' + percent(float(plant.partition(':')[2])):>9}" for plant in plants)
    lines = [f"{'':{width}}{'spread':>9}{'SAME':>9}{'alarms':>8}{'finds':>8}{headings}"]
    for name, each in curve.benchmarks.items():
        drawn = each.outcomes.total()  # none where no device has recorded enough processes
        same = percent(each.outcomes[Outcome.SAME] / drawn) if drawn else ""
        shares = "".join(f"{percent(each.found[plant][1]) if plant in each.found else '':>9}" for plant in plants)
        lines.append(
            f"{name.partition('::')[2]:{width}}{_fine(each.spread):>9}{same:>9}"
            f"{each.outcomes[Outcome.REGRESSED]:>8}{_fine(each.detectable):>8}{shares}"
        )
    lines.append(
        f"REGRESSED anywhere in {curve.alarmed} of {curve.gates} gates drawn from {curve.processes} unchanged "
        f"processes of {curve.devices} device{'s' if curve.devices != 1 else ''}"
    )
    missed = [
        f"{plant} in {name.partition('::')[2]}"
        for name, each in curve.benchmarks.items()
        for plant, found in each.exact.items()
        if not found
    ]
    tried = sum(len(each.exact) for each in curve.benchmarks.values())
    if tried:
        but = f"; not {', '.join(missed)}" if missed else ""
        lines.append(f"exact faults: {tried - len(missed)} of {tried} found{but}")
    return lines


def _decide(
    values: Sequence[float], pairs: Sequence[tuple[int, int]], factor: float, plan: Sequence[int], policy: Policy
) -> Verdict:
    """Look by look, as a session does."""
    slower = False
    for look in plan:
        base = Metric(values=tuple(values[first] for first, _ in pairs[:look]), unit="s", kind="noisy")
        now = Metric(values=tuple(values[second] * factor for _, second in pairs[:look]), unit="s", kind="noisy")
        verdict = judge({LATENCY: base}, {LATENCY: now}, policy)
        if settled(verdict, seen_slower=slower):
            break
        slower |= is_slower(verdict)
    return verdict


def _try_plants(
    curve: Curve, name: str, records: Sequence[Record], plan: Sequence[int], policy: Policy, gates: int,
    generator: random.Random,
) -> None:  # fmt: skip
    for plant in TIME_PLANTS:
        planted = [record for record in records if name in record.plants.get(plant, {})]
        if not planted:
            continue
        sizes, reds = [], 0
        for _ in range(gates):
            record = generator.choice(planted)
            unchanged = record.plants[UNCHANGED][name][LATENCY]
            factor = record.plants[plant][name][LATENCY].typical / unchanged.typical
            sizes.append(factor - 1)
            verdict = _decide(unchanged.values, _draw(record, plan[-1], generator), factor, plan, policy)
            reds += verdict.outcome == Outcome.REGRESSED
        curve.found[plant] = statistics.fmean(sizes), reds / gates
    for plant in EXACT_PLANTS:
        for record in records:
            if name in record.plants.get(plant, {}):
                found = _is_found(record.plants[UNCHANGED][name], record.plants[plant][name], policy)
                curve.exact[plant] = curve.exact.get(plant, True) and found


def _is_found(unchanged: Mapping[str, Metric], planted: Mapping[str, Metric], policy: Policy) -> bool:
    """Whether an exact metric tells, or a time by itself does."""
    regressions, _ = compare_exact(unchanged, planted, {}, same_toolchain=True)
    slowdown = planted[LATENCY].typical / unchanged[LATENCY].typical - 1
    return bool(regressions) or slowdown > policy.margin + policy.mde


def _draw(record: Record, count: int, generator: random.Random) -> list[tuple[int, int]]:
    """Pairs of neighbouring processes, which of the two comes first being as good as drawn."""
    found = []
    for _ in range(count):
        first = generator.randrange(record.processes - 1)
        pair = (first, first + 1)
        found.append(pair if generator.random() < 0.5 else pair[::-1])
    return found


def _spread(records: Sequence[Record], name: str) -> float:
    return max(
        relative_spread(record.plants[UNCHANGED][name][LATENCY].values)
        for record in records
        if name in record.plants[UNCHANGED]
    )


def _fine(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
