"""The rule that decides whether a benchmark became worse. Pure functions of stored and current metrics.

Exact metrics may not worsen beyond their allowance. Noisy ones are compared on the logarithm of the process medians: a
process is one observation, however many rounds it timed, because rounds of one process share its memory layout, clocks
and neighbours. The slowdown is estimated with a Student interval over the variance pooled from both sides.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kernelgate.metrics import EAGER, ERROR, LATENCY, Metric
from kernelgate.units import percent, quantity, rate

RESOLUTION_SECONDS = 0.5e-6
ERROR_GROWTH = 1.25
MAX_PROCESSES = 50


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
        alpha: Probability of a false alarm of one interval bound, already divided among the metrics of the run.
        allow: How much an exact metric may worsen, by name; of a kernel's resource, by the name before the colon.
        eager_margin: As `margin`, for eager latency. None leaves eager latency unjudged.
        env_tolerance: Ceilings further apart than this fraction belong to machines in different states.
    """

    margin: float
    mde: float
    alpha: float
    allow: Mapping[str, float] = field(default_factory=dict)
    eager_margin: float | None = None
    env_tolerance: float


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
    """The outcome, the reasons for it, the slowdown of the latency, and remarks that changed nothing."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    interval: Interval | None = None
    notes: tuple[str, ...] = ()


def judge(
    baseline: Mapping[str, Metric], current: Mapping[str, Metric], policy: Policy, *, same_toolchain: bool = True
) -> Verdict:
    """The verdict on a benchmark, from its metrics then and now."""
    regressions, notes = compare_exact(baseline, current, policy.allow, same_toolchain=same_toolchain)
    moved = compare_ceilings(baseline, current, policy.env_tolerance)
    outcomes, reasons, interval = {Outcome.SAME}, list(regressions), None
    if regressions:
        outcomes.add(Outcome.REGRESSED)
    for name, margin in ((LATENCY, policy.margin), (EAGER, policy.eager_margin)):
        if margin is None or name not in baseline or name not in current:
            continue
        outcome, slowdown, reason = compare_noisy(
            baseline[name].values, current[name].values, margin=margin, mde=policy.mde, alpha=policy.alpha
        )
        if name == LATENCY:
            interval = slowdown
        if moved:
            outcome, reason = Outcome.ENV, ""
        outcomes.add(outcome)
        if reason:
            reasons.append(f"{name}: {reason}")
    precedence = list(Outcome)
    return Verdict(
        outcome=min(outcomes, key=precedence.index),
        reasons=(*reasons, *moved),
        interval=interval,
        notes=tuple(notes),
    )


def compare_noisy(
    baseline: Sequence[float], current: Sequence[float], *, margin: float, mde: float, alpha: float
) -> tuple[Outcome, Interval | None, str]:
    """Compare the process medians of a time in seconds.

    Returns:
        The outcome, the slowdown where its spread can be estimated at all, and the reason for an outcome that is not
        SAME.
    """
    base, now = [math.log(value) for value in baseline], [math.log(value) for value in current]
    level = math.exp(statistics.fmean(base))
    freedom = len(base) + len(now) - 2
    if freedom < 1:
        return Outcome.INSUFFICIENT, None, "one process a side shows no spread; measure with --gate-processes=3 or more"
    spread = math.sqrt((_squares(base) + _squares(now)) / freedom)
    estimate = statistics.fmean(now) - statistics.fmean(base)
    half_width = _half_width(spread, len(base), len(now), alpha)
    interval = Interval(
        estimate=math.expm1(estimate),
        lower=math.expm1(estimate - half_width),
        upper=math.expm1(min(estimate + half_width, 700.0)),  # the largest exponent a float holds
    )
    # A difference below the clock's resolution is no difference, however many per cent of a short call it is.
    margin = max(margin, RESOLUTION_SECONDS / level)
    found = f"{quantity(level * math.exp(estimate), 's')}, was {quantity(level, 's')}: {interval}"
    if interval.lower > margin:
        return Outcome.REGRESSED, interval, f"{found}, margin {percent(margin)}"
    if estimate + half_width < -math.log1p(margin):
        return Outcome.IMPROVED, interval, f"{found}, margin {percent(margin)}"
    if interval.upper < margin + mde:
        return Outcome.SAME, interval, ""
    if half_width > math.log1p(mde):
        advice = _advice(spread, len(base), len(now), alpha, mde)
        return Outcome.INSUFFICIENT, interval, f"{found}, too wide to show a slowdown of {percent(mde)}; {advice}"
    return Outcome.AMBIGUOUS, interval, f"{found}, neither within nor beyond the margin of {percent(margin)}"


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


def _squares(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _half_width(spread: float, n_base: int, n_now: int, alpha: float) -> float:
    from scipy.special import stdtrit  # Student's quantile; half a second that only comparisons spend

    return float(stdtrit(n_base + n_now - 2, 1 - alpha)) * spread * math.sqrt(1 / n_base + 1 / n_now)


def _advice(spread: float, n_base: int, n_now: int, alpha: float, mde: float) -> str:
    """How many processes would do, if the spread stays as it was seen."""
    for count in range(n_now + 1, MAX_PROCESSES + 1):
        if _half_width(spread, n_base, count, alpha) <= math.log1p(mde):
            return f"{count - n_now} more processes would do"
    for count in range(n_base + 1, MAX_PROCESSES + 1):
        if _half_width(spread, count, count, alpha) <= math.log1p(mde):
            return f"it takes about {count} processes, and a baseline of as many"
    return f"a spread of {percent(spread)} between processes is too large for it"
