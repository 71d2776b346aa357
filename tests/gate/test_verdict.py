import math
import random
import statistics

import pytest
from scipy import stats

from kernelgate.metrics import Metric
from kernelgate.verdict import Outcome, Policy, compare_ceilings, compare_exact, compare_noisy, judge

pytestmark = pytest.mark.correctness

POLICY = Policy(margin=0.05, mde=0.05, alpha=0.01, env_tolerance=0.05)


def noisy(*values):
    return Metric(values=values, unit="s", kind="noisy")


def exact(value, kind="exact", better="lower"):
    return Metric(values=(value,), unit="B", kind=kind, better=better)


def times(generator, spread, count, slowdown=0.0, level=1e-3):
    return [level * (1 + slowdown) * math.exp(generator.gauss(0, spread)) for _ in range(count)]


class TestNoisyMetrics:
    @pytest.mark.parametrize(
        ("now", "outcome"),
        [
            ([1.000e-3, 1.001e-3, 0.999e-3], Outcome.SAME),
            ([1.200e-3, 1.201e-3, 1.199e-3], Outcome.REGRESSED),
            ([0.800e-3, 0.801e-3, 0.799e-3], Outcome.IMPROVED),
            ([1.060e-3, 1.080e-3, 1.100e-3], Outcome.AMBIGUOUS),
            ([0.800e-3, 1.000e-3, 1.200e-3], Outcome.INSUFFICIENT),
        ],
    )
    def test_each_outcome_has_its_region(self, now, outcome):
        found, _, reason = compare_noisy([1.000e-3, 1.002e-3, 0.998e-3], now, margin=0.05, mde=0.05, alpha=0.01)
        assert found == outcome
        assert bool(reason) == (outcome != Outcome.SAME)

    def test_one_process_a_side_is_insufficient(self):
        outcome, interval, reason = compare_noisy([1e-3], [2e-3], margin=0.05, mde=0.05, alpha=0.01)
        assert (outcome, interval) == (Outcome.INSUFFICIENT, None)
        assert "--gate-processes" in reason

    def test_one_process_against_several_is_judged_by_their_spread(self):
        outcome, _, _ = compare_noisy([1.000e-3, 1.001e-3, 0.999e-3], [1.2e-3], margin=0.05, mde=0.05, alpha=0.01)
        assert outcome == Outcome.REGRESSED

    def test_insufficient_says_how_many_more_processes_would_do(self):
        base, now, mde = [1.00e-3, 1.01e-3, 0.99e-3] * 4, [0.985e-3, 1.015e-3], 0.02
        outcome, _, reason = compare_noisy(base, now, margin=0.0, mde=mde, alpha=0.01)
        assert outcome == Outcome.INSUFFICIENT
        needed = len(now) + int(reason.rpartition("; ")[2].split()[0])
        squares = sum((len(side) - 1) * statistics.variance(map(math.log, side)) for side in (base, now))
        spread = math.sqrt(squares / (len(base) + len(now) - 2))

        def half_width(count):
            return stats.t.ppf(0.99, len(base) + count - 2) * spread * math.sqrt(1 / len(base) + 1 / count)

        assert half_width(needed) <= math.log1p(mde) < half_width(needed - 1)

    def test_a_difference_below_the_clocks_resolution_is_none(self):
        base, slower = [2.00e-6, 2.001e-6, 1.999e-6], [2.4e-6, 2.401e-6, 2.399e-6]
        assert compare_noisy(base, slower, margin=0.05, mde=0.05, alpha=0.01)[0] == Outcome.SAME
        much_slower = [value + 0.5e-6 for value in slower]
        assert compare_noisy(base, much_slower, margin=0.05, mde=0.05, alpha=0.01)[0] == Outcome.REGRESSED

    def test_the_interval_is_students(self):
        base, now = [1.0, math.exp(0.02)], [math.exp(0.10), math.exp(0.14)]
        _, interval, _ = compare_noisy(base, now, margin=0.05, mde=0.05, alpha=0.025)
        # Mean difference 0.11, pooled variance (0.0002 + 0.0008) / 2, two degrees of freedom: quantile 4.3027.
        half_width = 4.302653 * math.sqrt(0.0005)
        assert math.log1p(interval.estimate) == pytest.approx(0.11)
        assert math.log1p(interval.lower) == pytest.approx(0.11 - half_width, abs=1e-6)
        assert math.log1p(interval.upper) == pytest.approx(0.11 + half_width, abs=1e-6)


class TestOperatingCurve:
    ROUNDS = 2000

    def regressed(self, *, slowdown, margin, alpha, spread=0.005, processes=3):
        generator = random.Random(20260)
        return sum(
            compare_noisy(
                times(generator, spread, processes),
                times(generator, spread, processes, slowdown),
                margin=margin,
                mde=0.05,
                alpha=alpha,
            )[0]
            == Outcome.REGRESSED
            for _ in range(self.ROUNDS)
        )

    def test_the_false_alarm_rate_at_the_margin_is_alpha(self):
        """Where the slowdown equals the margin the bound is exact, so a wrong quantile or variance shows."""
        alarms = self.regressed(slowdown=0.05, margin=0.05, alpha=0.05)
        deviation = math.sqrt(self.ROUNDS * 0.05 * 0.95)
        assert abs(alarms - self.ROUNDS * 0.05) < 4 * deviation

    def test_an_unchanged_tree_raises_no_alarm(self):
        assert self.regressed(slowdown=0.0, margin=0.05, alpha=0.01 / 12) == 0

    def test_ten_per_cent_are_found(self):
        """At half a per cent between processes and with the correction of a suite of a dozen benchmarks."""
        assert self.regressed(slowdown=0.10, margin=0.05, alpha=0.01 / 12) > 0.90 * self.ROUNDS


class TestExactMetrics:
    @pytest.mark.parametrize(
        ("before", "now", "regressed"),
        [
            (exact(4096), exact(4608), True),
            (exact(4096), exact(3584), False),
            (exact(10, better="higher"), exact(9, better="higher"), True),
            (exact(4, kind="binary", better="equal"), exact(8, kind="binary", better="equal"), True),
            (exact(8, kind="binary", better="equal"), exact(4, kind="binary", better="equal"), True),
            (exact(4096, kind="info"), exact(9999, kind="info"), False),
        ],
    )
    def test_any_worsening_regresses(self, before, now, regressed):
        regressions, _ = compare_exact({"bytes": before}, {"bytes": now}, {}, same_toolchain=True)
        assert bool(regressions) == regressed

    def test_the_worst_process_counts(self):
        now = Metric(values=(4096, 4608, 4096), unit="B", kind="exact")
        assert compare_exact({"peak_bytes": exact(4096)}, {"peak_bytes": now}, {}, same_toolchain=True)[0]

    @pytest.mark.parametrize(("allowed", "regressed"), [(511, True), (512, False)])
    def test_an_allowance_is_honoured_to_the_byte(self, allowed, regressed):
        before, now = {"peak_bytes": exact(4096)}, {"peak_bytes": exact(4608)}
        regressions, _ = compare_exact(before, now, {"peak_bytes": allowed}, same_toolchain=True)
        assert bool(regressions) == regressed

    def test_an_allowance_for_a_resource_holds_for_every_kernel(self):
        before, now = {"n_regs:_scan": exact(64, "binary")}, {"n_regs:_scan": exact(72, "binary")}
        assert compare_exact(before, now, {}, same_toolchain=True)[0]
        assert not compare_exact(before, now, {"n_regs": 8}, same_toolchain=True)[0]

    def test_compiled_code_is_not_judged_across_toolchains(self):
        before, now = {"n_regs:_scan": exact(64, "binary")}, {"n_regs:_scan": exact(72, "binary")}
        regressions, notes = compare_exact(before, now, {}, same_toolchain=False)
        assert not regressions
        assert "toolchain changed" in notes[0]

    def test_a_metric_cannot_leave_the_gate_silently(self):
        regressions, _ = compare_exact({"peak_bytes": exact(4096)}, {}, {}, same_toolchain=True)
        assert "no longer measured" in regressions[0]

    def test_a_kernel_may_be_fused_away(self):
        assert not compare_exact({"n_regs:_scan": exact(64)}, {}, {}, same_toolchain=True)[0]

    @pytest.mark.parametrize(("error", "regressed"), [(1.24e-3, False), (1.26e-3, True), (0.5e-3, False)])
    def test_an_error_regresses_when_it_grows_by_a_quarter(self, error, regressed):
        before, now = (Metric(values=(value,), unit="1", kind="error") for value in (1e-3, error))
        regressions, _ = compare_exact({"numerical_error": before}, {"numerical_error": now}, {}, same_toolchain=True)
        assert bool(regressions) == regressed


class TestJudge:
    CEILING = Metric(values=(4e12,), unit="B/s", kind="ceiling", better="higher")
    SLOW_CEILING = Metric(values=(3.5e12,), unit="B/s", kind="ceiling", better="higher")
    BASE = noisy(1.000e-3, 1.001e-3, 0.999e-3)
    SLOW = noisy(1.200e-3, 1.201e-3, 1.199e-3)

    def test_a_machine_in_another_state_is_env(self):
        assert compare_ceilings({"c": self.CEILING}, {"c": self.CEILING}, 0.05) == []
        before, now = {"latency_s": self.BASE, "c": self.CEILING}, {"latency_s": self.SLOW, "c": self.SLOW_CEILING}
        verdict = judge(before, now, POLICY)
        assert verdict.outcome == Outcome.ENV
        assert "not in the state of the baseline" in verdict.reasons[0]

    def test_exact_metrics_are_judged_on_a_machine_in_any_state(self):
        before = {"latency_s": self.BASE, "c": self.CEILING, "peak_bytes": exact(4096)}
        now = {"latency_s": self.BASE, "c": self.SLOW_CEILING, "peak_bytes": exact(8192)}
        assert judge(before, now, POLICY).outcome == Outcome.REGRESSED

    def test_faster_and_hungrier_is_a_regression(self):
        before = {"latency_s": self.SLOW, "peak_bytes": exact(4096)}
        now = {"latency_s": self.BASE, "peak_bytes": exact(8192)}
        assert judge(before, now, POLICY).outcome == Outcome.REGRESSED

    def test_eager_latency_is_judged_only_with_a_margin_of_its_own(self):
        before = {"latency_s": self.BASE, "eager_s": self.BASE}
        now = {"latency_s": self.BASE, "eager_s": self.SLOW}
        assert judge(before, now, POLICY).outcome == Outcome.SAME
        strict = Policy(margin=0.05, mde=0.05, alpha=0.01, env_tolerance=0.05, eager_margin=0.1)
        assert judge(before, now, strict).outcome == Outcome.REGRESSED
