"""How much slower, and how sure: one estimator for all comparisons of times.

Observations are logarithms of process medians. A process now and then lies far off, alone: an estimator over the means
would follow it, so from five processes a side on, a fifth of them at either end counts only by the innermost value kept
(Yuen's test on trimmed means). Sources: K. K. Yuen, "The two-sample trimmed t for unequal population variances",
Biometrika 61 (1974) 165; K. K. Yuen and W. J. Dixon, "The approximate behaviour and performance of the two-sample
trimmed t", Biometrika 60 (1973) 369, whose pooled variance this is.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TRIMMED = 0.2


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two sides, with its standard error and the degrees of freedom of that."""

    estimate: float
    error: float
    freedom: int

    def half_width(self, alpha: float) -> float:
        """Of the interval that the true difference lies above, and below, with probability 1 - alpha each."""
        from scipy.special import stdtrit  # Student's quantile; half a second that only comparisons spend

        return float(stdtrit(self.freedom, 1 - alpha)) * self.error


def compare(base: Sequence[float], now: Sequence[float], *, paired: bool = False) -> Difference | None:
    """The difference of the current side from the base, None where no spread can be estimated.

    Args:
        base: Of the base, one value a process.
        now: Of the current tree.
        paired: The i-th value of one side was measured next to the i-th of the other, on the same device.
    """
    if paired:
        sides: list[list[float]] = [[y - x for x, y in zip(base, now, strict=True)]]
    else:
        sides = [list(base), list(now)]
    trimmed = min(map(len, sides)) >= 1 / TRIMMED
    parts = [_part(side, trimmed=trimmed) for side in sides]
    freedom = sum(part.kept - 1 for part in parts)
    if freedom < 1:
        return None
    variance = sum(part.squares for part in parts) / freedom
    return Difference(
        estimate=parts[-1].mean - (0.0 if paired else parts[0].mean),
        error=math.sqrt(variance * sum(1 / part.kept for part in parts)),
        freedom=freedom,
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    mean: float
    squares: float
    kept: int


def _part(values: Sequence[float], *, trimmed: bool) -> _Part:
    """A side's trimmed mean, the winsorised sum of squares about its mean, and the number of values kept."""
    ordered, count = sorted(values), len(values)
    cut = int(TRIMMED * count) if trimmed else 0
    kept = ordered[cut : count - cut]
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    return _Part(mean=statistics.fmean(kept), squares=_squares(winsorised), kept=len(kept))


def _squares(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values)
