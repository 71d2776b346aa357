"""The rule that decides whether a benchmark became worse. Pure functions of stored and current metrics.

Exact metrics may not worsen beyond their allowance. Noisy ones are compared on the logarithm of the process medians: a
process is one observation, however many rounds it timed, because rounds of one process share its memory layout, clocks
and neighbours.

Two errors are held apart. A false alarm anywhere in an unchanged tree has the probability `ALPHA` at most, shared by
all metrics judged and all looks at them. A slowdown of margin + mde called SAME has the probability `MISSED`, for each
metric, shared by the looks at it.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kernelgate.estimate import Difference, compare
from kernelgate.metrics import EAGER, ERROR, FOREIGN, LATENCY, LOAD, SLOWED, THREADS, Metric
from kernelgate.units import percent, quantity, rate

RESOLUTION_SECONDS = 0.5e-6
ERROR_GROWTH = 1.2
ALPHA = 0.01
MISSED = 0.01
MAX_PROCESSES = 50
LOAD_TOLERANCE = 0.25
SLOWED_TOLERANCE = 0.5


class Outcome(StrEnum):
    """What the comparison of one benchmark came to, in order of precedence."""

    REGRESSED = "REGRESSED"
    MISSING = "MISSING"
    NEW = "NEW"
    ENV = "ENV"
    INSUFFICIENT = "INSUFFICIENT"
    AMBIGUOUS = "AMBIGUOUS"
    IMPROVED = "IMPROVED"
    SAME = "SAME"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How one benchmark is judged.

    Attributes:
        margin: A slowdown up to this fraction is none.
        mde: The minimum detectable effect: a slowdown of margin + mde has to be found.
        alpha: Probability of a false alarm of one interval bound, already divided among the metrics of the run and the
            looks at them.
        missed: Probability of calling a slowdown of margin + mde SAME, already divided among the looks.
        allow: How much an exact metric may worsen, by name; of a kernel's resource, by the name before the colon.
        eager_margin: As `margin`, for eager latency. None leaves eager latency unjudged.
        env_tolerance: Ceilings further apart than this fraction belong to machines in different states.
        load_tolerance: Other programs may use this fraction of the processors while a CPU is measured.
        slowed_tolerance: A slowdown of the GPU, for heat or by its hardware, may spoil this fraction of the samples.
        paired: The i-th processes of both sides ran next to each other, on the same device.
    """

    margin: float
    mde: float
    alpha: float
    missed: float = MISSED
    allow: Mapping[str, float] = field(default_factory=dict)
    eager_margin: float | None = None
    env_tolerance: float
    load_tolerance: float = LOAD_TOLERANCE
    slowed_tolerance: float = SLOWED_TOLERANCE
    paired: bool = False


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Slowdown as a fraction of the baseline, with its one-sided bounds."""

    estimate: float
    lower: float
    upper: float

    def __str__(self) -> str:
        # Beyond tenfold the digits say nothing but that nothing is known.
        low, high = (percent(min(bound, 9.99), signed=True).removesuffix(" %") for bound in (self.lower, self.upper))
        return f"{percent(self.estimate, signed=True)} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome, the reasons for it, the slowdown of the latency, and remarks that changed nothing.

    The interval's bounds are those that an alarm rests on. `margin` is the slowdown that counts as none, `detectable`
    the minimum detectable effect: the slowdown that as many processes, spread as these were, call REGRESSED with
    probability 1 - `MISSED`. Both are fractions, None where no time was compared.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    interval: Interval | None = None
    margin: float | None = None
    detectable: float | None = None
    notes: tuple[str, ...] = ()


def judge(
    baseline: Mapping[str, Metric], current: Mapping[str, Metric], policy: Policy, *, same_toolchain: bool = True
) -> Verdict:
    """The verdict on a benchmark, from its metrics then and now."""
    regressions, notes = compare_exact(baseline, current, policy.allow, same_toolchain=same_toolchain)
    unfit = [
        *compare_ceilings(baseline, current, policy.env_tolerance),
        *_other_threads(baseline, current),
        *disturbances(current, policy.load_tolerance, policy.slowed_tolerance),
    ]
    outcomes, reasons, latency = {Outcome.SAME}, list(regressions), None
    if regressions:
        outcomes.add(Outcome.REGRESSED)
    for name, margin in ((LATENCY, policy.margin), (EAGER, policy.eager_margin)):
        if margin is None or name not in baseline or name not in current:
            continue
        found = compare_noisy(
            baseline[name].values, current[name].values,
            margin=margin, mde=policy.mde, alpha=policy.alpha, missed=policy.missed, paired=policy.paired,
        )  # fmt: skip
        if name == LATENCY:
            latency = found
        outcomes.add(Outcome.ENV if unfit else found.outcome)
        if found.reason and not unfit:
            reasons.append(f"{name}: {found.reason}")
    precedence = list(Outcome)
    return Verdict(
        outcome=min(outcomes, key=precedence.index),
        reasons=(*reasons, *unfit),
        interval=latency.interval if latency else None,
        margin=latency.margin if latency else None,
        detectable=latency.detectable if latency else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a noisy metric came to; see :class:`Verdict` for the fields of the same name."""

    outcome: Outcome
    margin: float
    interval: Interval | None = None
    detectable: float | None = None
    reason: str = ""


def compare_noisy(
    baseline: Sequence[float],
    current: Sequence[float],
    *,
    margin: float,
    mde: float,
    alpha: float,
    missed: float = MISSED,
    paired: bool = False,
) -> Comparison:
    """Compare the process medians of a time in seconds; the reason is that of an outcome that is not SAME."""
    base, now = [math.log(value) for value in baseline], [math.log(value) for value in current]
    level = math.exp(statistics.fmean(base))
    # A difference below the clock's resolution is no difference, however many per cent of a short call it is.
    margin = max(margin, RESOLUTION_SECONDS / level)
    difference = compare(base, now, paired=paired)
    if difference is None:
        return Comparison(
            outcome=Outcome.INSUFFICIENT,
            margin=margin,
            reason="one process a side shows no spread; measure with --gate-processes=4 or more",
        )
    estimate, alarm, miss = difference.estimate, difference.half_width(alpha), difference.half_width(missed)
    interval = Interval(
        estimate=math.expm1(estimate),
        lower=math.expm1(estimate - alarm),
        upper=math.expm1(min(estimate + alarm, 700.0)),  # the largest exponent a float holds
    )
    found = f"{quantity(level * math.exp(estimate), 's')}, was {quantity(level, 's')}: {interval}"
    outcome, reason = Outcome.SAME, ""
    if interval.lower > margin:
        outcome, reason = Outcome.REGRESSED, f"{found}, margin {percent(margin)}"
    elif estimate + alarm < -math.log1p(margin):
        outcome, reason = Outcome.IMPROVED, f"{found}, margin {percent(margin)}"
    elif estimate + miss < math.log1p(margin + mde):
        pass
    elif alarm > math.log1p(mde):
        advice = _advice(difference, len(base), len(now), alpha, mde, paired=paired)
        outcome = Outcome.INSUFFICIENT
        reason = f"{found}, too wide to show a slowdown of {percent(mde)}; {advice}"
    else:
        outcome, reason = Outcome.AMBIGUOUS, f"{found}, neither within nor beyond the margin of {percent(margin)}"
    return Comparison(
        outcome=outcome,
        margin=margin,
        interval=interval,
        detectable=math.expm1(min(math.log1p(margin) + alarm + difference.half_width(MISSED), 700.0)),
        reason=reason,
    )


def compare_exact(
    baseline: Mapping[str, Metric], current: Mapping[str, Metric], allow: Mapping[str, float], *, same_toolchain: bool
) -> tuple[list[str], list[str]]:
    """Regressions of the exact metrics and of the numerical error, and notes on those that cannot be compared."""
    regressions, notes = [], []
    for name, before in baseline.items():
        if before.kind not in ("exact", "binary", "error"):
            continue
        of_a_kernel = ":" in name
        if name not in current:
            # A kernel may be fused away or renamed; a metric of the call may not silently leave the gate.
            if not of_a_kernel:
                regressions.append(f"{name}: no longer measured, was {quantity(before.worst, before.unit)}")
            continue
        now, was = current[name].worst, before.worst
        difference = now - was
        worse = {"lower": difference, "higher": -difference, "equal": abs(difference)}[before.better]
        allowed = allow.get(name, allow.get(name.partition(":")[0], 0))
        if before.kind == "error":
            allowed = max(allowed, (ERROR_GROWTH - 1) * was)
        if worse <= allowed:
            continue
        change = f"{name}: {quantity(now, before.unit)}, was {quantity(was, before.unit)}"
        if before.kind == "binary" and not same_toolchain:
            notes.append(f"{change} (not judged: the toolchain changed)")
        elif name == ERROR:
            regressions.append(f"{change}, more than {ERROR_GROWTH} times as large")
        else:
            regressions.append(f"{change}, allowed {quantity(allowed, before.unit)}")
    return regressions, notes


def compare_ceilings(baseline: Mapping[str, Metric], current: Mapping[str, Metric], tolerance: float) -> list[str]:
    """The ceilings by which this machine differs from the one of the baseline, or from itself then."""
    return [
        f"{name}: {rate(current[name].typical, before.unit)}, was {rate(before.typical, before.unit)}: "
        f"the machine is not in the state of the baseline (tolerance {percent(tolerance)})"
        for name, before in baseline.items()
        if before.kind == "ceiling"
        and name in current
        and abs(math.log(current[name].typical / before.typical)) > math.log1p(tolerance)
    ]


def _other_threads(baseline: Mapping[str, Metric], current: Mapping[str, Metric]) -> list[str]:
    if THREADS not in baseline or THREADS not in current:
        return []
    was, now = (set(metrics[THREADS].values) for metrics in (baseline, current))
    if was == now:
        return []
    return [f"expected the baseline's number of threads, {_listed(was)}, found {_listed(now)}: see OMP_NUM_THREADS"]


def _listed(numbers: Collection[float]) -> str:
    return ", ".join(f"{number:.0f}" for number in sorted(numbers))


def disturbances(
    current: Mapping[str, Metric], load_tolerance: float = LOAD_TOLERANCE, slowed_tolerance: float = SLOWED_TOLERANCE
) -> list[str]:
    """Why times that were measured on this machine say nothing, whatever they are compared with."""
    typical = {name: current[name].typical if name in current else 0.0 for name in (LOAD, SLOWED, FOREIGN)}
    found = []
    if typical[LOAD] > load_tolerance:
        found.append(
            f"other programs used {percent(typical[LOAD])} of the processors while it was measured "
            f"(tolerance {percent(load_tolerance)})"
        )
    if typical[SLOWED] > slowed_tolerance:
        found.append(
            f"the GPU slowed down, for heat or by its hardware, during {percent(typical[SLOWED])} of the samples "
            f"(tolerance {percent(slowed_tolerance)})"
        )
    if typical[FOREIGN] > 0:
        found.append(f"expected the GPU for itself, found it open in {typical[FOREIGN]:.0f} other programs")
    return found


def _advice(found: Difference, n_base: int, n_now: int, alpha: float, mde: float, *, paired: bool) -> str:
    """How many processes would do, if the spread stays as it was seen."""
    spread = found.error / math.sqrt(1 / n_base if paired else 1 / n_base + 1 / n_now)

    def enough(base: int, now: int) -> bool:
        alike = Difference(
            estimate=0.0,
            error=spread * math.sqrt(1 / now if paired else 1 / base + 1 / now),
            freedom=now - 1 if paired else base + now - 2,
        )
        return alike.half_width(alpha) <= math.log1p(mde)

    for count in range(n_now + 1, MAX_PROCESSES + 1):
        if enough(n_base, count):
            return f"{count - n_now} more processes would do"
    for count in range(n_base + 1, MAX_PROCESSES + 1):
        if not paired and enough(count, count):
            return f"it takes about {count} processes, and a baseline of as many"
    return f"a spread of {percent(spread)} between processes is too large for it"
