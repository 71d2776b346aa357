"""Whole gates, simulated: what an unchanged tree and a planted slowdown come to after up to four looks.

A gate draws 40 benchmarks of 20 processes a side and decides as the core does; the first test holds the simulation to
the core. Rates are over thousands of gates, so their bounds are those of the target plus four standard deviations.
"""

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from kernelgate.estimate import TRIMMED
from kernelgate.looks import LOOKS, is_slower, looks, settled
from kernelgate.verdict import ALPHA, MISSED, Interval, Outcome, Verdict, compare_noisy

pytestmark = pytest.mark.correctness

GATES = 5000
BENCHMARKS = 40
MARGIN, MDE = 0.01, 0.02  # of pairs on a GPU
WITHIN = 0.001  # spread of processes of one mode
TARGET = ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / GATES)

SAME, IMPROVED, REGRESSED, UNDECIDED = range(4)
CODES = {
    Outcome.SAME: SAME,
    Outcome.IMPROVED: IMPROVED,
    Outcome.REGRESSED: REGRESSED,
    Outcome.AMBIGUOUS: UNDECIDED,
    Outcome.INSUFFICIENT: UNDECIDED,
}


def normal(generator, shape, spread=0.005):
    return generator.normal(0, spread, (2, *shape))


def heavy_tailed(generator, shape):
    """One process in ten is 5 % off, in either direction."""
    outlying = generator.choice([-0.05, 0.0, 0.05], (2, *shape), p=[0.05, 0.9, 0.05])
    return normal(generator, shape, WITHIN) + np.log1p(outlying)


def slow_tailed(generator, shape):
    """One process in ten is 5 % slower."""
    outlying = generator.choice([0.0, 0.05], (2, *shape), p=[0.9, 0.1])
    return normal(generator, shape, WITHIN) + np.log1p(outlying)


def bimodal(generator, shape):
    """One process in five lands in a mode that is 2 % slower."""
    slower = generator.choice([0.0, 0.02], (2, *shape), p=[0.8, 0.2])
    return normal(generator, shape, WITHIN) + np.log1p(slower)


def drifting(generator, shape, total=0.01, *, alternating=True):
    """The machine slows down evenly; the pairs run base, current, current, base, or with the base always first."""
    pairs = np.arange(shape[-1])
    second = np.where(pairs % 2 == 0, 1, 0) if alternating else np.ones_like(pairs)
    when = np.stack([2 * pairs + 1 - second, 2 * pairs + second])  # of the base, of the current tree
    return normal(generator, shape, WITHIN) + np.log1p(total) * when[:, None, :] / (2 * shape[-1])


def decide(base, now, *, paired, mde, judged):
    """The outcome of every row's processes, as `compare_noisy` decides."""
    sides = [now - base] if paired else [base, now]
    trim = sides[0].shape[-1] >= 1 / TRIMMED
    means, squares, kept = zip(*(_part(side, trim) for side in sides), strict=True)
    freedom = sum(count - 1 for count in kept)
    error = np.sqrt(sum(squares) / freedom * sum(1 / count for count in kept))
    estimate = means[-1] - (0 if paired else means[0])
    shares = BENCHMARKS * judged
    alarm, miss = (stdtrit(freedom, 1 - level) * error for level in (ALPHA / shares, MISSED / judged))
    edge, found = np.log1p(MARGIN), np.log1p(MARGIN + mde)
    regions = [estimate - alarm > edge, estimate + alarm < -edge, estimate + miss < found]
    return np.select(regions, [REGRESSED, IMPROVED, SAME], UNDECIDED)


def _part(side, trim):
    count = side.shape[-1]
    cut = int(TRIMMED * count) if trim else 0
    ordered = np.sort(side, -1)
    kept = ordered[..., cut : count - cut]
    winsorised = np.clip(ordered, kept[..., :1], kept[..., -1:])
    return kept.mean(-1), winsorised.var(-1) * count, count - 2 * cut


def simulate(base, now, processes=LOOKS[-1], *, paired=True, mde=MDE):
    """The final outcome of every row, and the look that it was reached at."""
    taken = looks(processes)
    outcomes, ended = np.full(len(base), UNDECIDED), np.full(len(base), taken[-1])
    red, open_rows = np.zeros(len(base), bool), np.arange(len(base))
    for look in taken:
        found = decide(base[open_rows, :look], now[open_rows, :look], paired=paired, mde=mde, judged=len(taken))
        outcomes[open_rows] = found
        done = (found != UNDECIDED) & ((found != REGRESSED) | red[open_rows])
        ended[open_rows[done]] = look
        red[open_rows] |= found == REGRESSED
        open_rows = open_rows[~done]
    return outcomes, ended


def gates(series, *, slowdown=0.0, processes=LOOKS[-1], paired=True, mde=MDE):
    """Outcomes by gate and benchmark."""
    generator = np.random.default_rng(6)
    found = []
    for _ in range(10):  # a part at a time, for the memory's sake
        base, now = series(generator, (GATES // 10 * BENCHMARKS, processes))
        found.append(simulate(base, now + np.log1p(slowdown), processes, paired=paired, mde=mde)[0])
    return np.concatenate(found).reshape(GATES, BENCHMARKS)


def red_gates(outcomes):
    """The share of gates with any REGRESSED."""
    return (outcomes == REGRESSED).any(axis=1).mean()


class TestSimulation:
    @pytest.mark.parametrize("paired", [True, False])
    @pytest.mark.parametrize("series", [normal, heavy_tailed, bimodal, drifting])
    def test_it_decides_as_the_core_does(self, series, paired):
        generator = np.random.default_rng(7)
        base, now = series(generator, (80, 20))
        now = now + np.log1p(np.linspace(-0.05, 0.05, 80))[:, None]
        outcomes, ended = simulate(base, now, paired=paired)
        assert set(outcomes) >= {SAME, IMPROVED, REGRESSED}
        for row in range(80):
            red = False
            for look in looks(20):
                found = compare_noisy(
                    np.exp(base[row, :look]).tolist(),
                    np.exp(now[row, :look]).tolist(),
                    margin=MARGIN,
                    mde=MDE,
                    alpha=ALPHA / BENCHMARKS / len(LOOKS),
                    missed=MISSED / len(LOOKS),
                    paired=paired,
                )
                verdict = Verdict(outcome=found.outcome, interval=found.interval, margin=found.margin)
                if settled(verdict, seen_slower=red):
                    break
                red |= is_slower(verdict)
            assert (CODES[found.outcome], look) == (outcomes[row], ended[row])


class TestUnchangedTree:
    """At most one gate in a hundred shows any REGRESSED."""

    @pytest.mark.parametrize("paired", [True, False])
    @pytest.mark.parametrize("series", [normal, heavy_tailed, slow_tailed, bimodal])
    def test_raises_an_alarm_in_one_gate_of_a_hundred_at_most(self, series, paired):
        outcomes = gates(series, paired=paired)
        assert red_gates(outcomes) <= TARGET
        assert (outcomes == SAME).mean() > 0.95  # abstaining would raise no alarm either

    def test_raises_none_while_the_machine_drifts(self):
        outcomes = gates(drifting)
        assert red_gates(outcomes) <= TARGET
        assert (outcomes == SAME).mean() > 0.95

    def test_alternating_the_order_is_what_a_strong_drift_takes(self):
        """By 2 % a process: with the base always first every benchmark would be slower than the margin allows."""
        total = math.expm1(40 * math.log1p(0.02))
        assert red_gates(gates(lambda *draw: drifting(*draw, total=total))) <= TARGET
        assert red_gates(gates(lambda *draw: drifting(*draw, total=total, alternating=False))) > 0.99

    @pytest.mark.parametrize("paired", [True, False])
    @pytest.mark.parametrize("processes", [4, 5, 8, 12, 20])
    def test_every_benchmark_at_the_edge_of_the_margin_does_not_raise_more(self, processes, paired):
        """The worst case: all 40 of them are slower by the margin, and none can be called the same before the end."""
        outcomes = gates(normal, slowdown=MARGIN, processes=processes, paired=paired, mde=1e-9)
        assert red_gates(outcomes) <= TARGET


class TestPlantedSlowdown:
    def test_three_per_cent_are_found_at_half_a_per_cent_between_processes(self):
        outcomes = gates(normal, slowdown=0.03)
        assert (outcomes == REGRESSED).mean() > 0.99

    @pytest.mark.parametrize("paired", [True, False])
    @pytest.mark.parametrize(
        ("series", "found"),
        [(heavy_tailed, 0.94), (slow_tailed, 0.92), (bimodal, 0.82)],
        ids=["heavy", "slow", "bimodal"],
    )
    def test_three_per_cent_are_never_called_the_same_among_other_differences(self, series, found, paired):
        """Where processes differ in other ways, some slowdowns of 3 % stay undecided, which is not green either."""
        outcomes = gates(series, slowdown=0.03, paired=paired)
        assert (outcomes == SAME).mean() < MISSED
        assert (outcomes == REGRESSED).mean() > found


class TestLooks:
    @pytest.mark.parametrize(
        ("processes", "expected"),
        [(1, (1,)), (3, (3,)), (4, (4,)), (5, (4, 5)), (12, (4, 8, 12)), (20, LOOKS), (30, (*LOOKS, 30))],
    )
    def test_the_last_is_the_number_of_processes(self, processes, expected):
        assert looks(processes) == expected

    @pytest.mark.parametrize("outcome", [Outcome.SAME, Outcome.IMPROVED, Outcome.ENV, Outcome.NEW])
    def test_what_is_not_red_needs_no_second_one(self, outcome):
        assert settled(Verdict(outcome=outcome), seen_slower=False)

    @pytest.mark.parametrize("outcome", [Outcome.AMBIGUOUS, Outcome.INSUFFICIENT])
    def test_what_is_undecided_needs_another(self, outcome):
        assert not settled(Verdict(outcome=outcome), seen_slower=True)

    @pytest.mark.parametrize(("seen", "expected"), [(False, False), (True, True)])
    def test_a_red_time_needs_a_second_one(self, seen, expected):
        verdict = Verdict(
            outcome=Outcome.REGRESSED, interval=Interval(estimate=0.1, lower=0.05, upper=0.2), margin=0.01
        )
        assert settled(verdict, seen_slower=seen) == expected

    @pytest.mark.parametrize(
        "verdict",
        [
            Verdict(outcome=Outcome.REGRESSED),
            Verdict(outcome=Outcome.REGRESSED, interval=Interval(estimate=0, lower=-0.01, upper=0.01), margin=0.01),
        ],
    )
    def test_a_red_exact_metric_needs_none(self, verdict):
        assert settled(verdict, seen_slower=False)
