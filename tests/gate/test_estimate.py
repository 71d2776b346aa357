import math
import random
import statistics

import pytest
from scipy import stats

from kernelgate.estimate import compare

pytestmark = pytest.mark.correctness


def normal(seed, count, *, center=0.0, spread=1.0):
    generator = random.Random(seed)
    return [generator.gauss(center, spread) for _ in range(count)]


class TestAgainstScipy:
    """`scipy.stats.ttest_ind` with `trim` and `equal_var` is the same test of two independent sides.

    It differs where one side has fewer than five values: there it trims the other one, and `compare` neither. For pairs
    it has no trimmed test, and `scipy.stats.mstats.trimmed_mean_ci` one of another author.
    """

    @pytest.mark.parametrize(("n_base", "n_now"), [(5, 5), (8, 8), (5, 12), (10, 7), (20, 20), (15, 6)])
    def test_trimmed_sides_have_its_statistic_interval_and_degrees_of_freedom(self, n_base, n_now):
        base, now = normal(1, n_base), normal(2, n_now, center=0.5, spread=2.0)
        expected = stats.ttest_ind(now, base, trim=0.2, equal_var=True)
        found = compare(base, now)
        assert found.freedom == expected.df
        assert found.estimate / found.error == pytest.approx(expected.statistic)
        low, high = expected.confidence_interval(0.98)
        assert found.estimate - found.half_width(0.01) == pytest.approx(low)
        assert found.estimate + found.half_width(0.01) == pytest.approx(high)

    @pytest.mark.parametrize(("n_base", "n_now"), [(2, 2), (4, 4), (3, 4), (4, 20), (20, 1), (1, 20)])
    def test_with_a_side_of_fewer_than_five_nothing_is_trimmed(self, n_base, n_now):
        base, now = normal(3, n_base), normal(4, n_now)
        found = compare(base, now)
        assert found.freedom == n_base + n_now - 2
        if min(n_base, n_now) > 1:
            expected = stats.ttest_ind(now, base, equal_var=True)
            assert found.estimate / found.error == pytest.approx(expected.statistic)
        else:  # scipy gives up on a side of one, whose spread is the other's
            more = max(base, now, key=len)
            assert found.estimate == pytest.approx(statistics.fmean(now) - statistics.fmean(base))
            assert found.error == pytest.approx(statistics.stdev(more) * math.sqrt(1 + 1 / 20))

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_few_pairs_have_students_test_of_their_differences(self, count):
        base, now = normal(5, count), normal(6, count)
        expected = stats.ttest_rel(now, base)
        found = compare(base, now, paired=True)
        assert (found.freedom, found.estimate / found.error) == pytest.approx((expected.df, expected.statistic))

    @pytest.mark.parametrize("count", [5, 8, 10, 12, 20])
    def test_many_pairs_have_the_trimmed_mean_of_their_differences(self, count):
        base, now = normal(7, count), normal(8, count)
        differences = [y - x for x, y in zip(base, now, strict=True)]
        found = compare(base, now, paired=True)
        kept = count - 2 * int(0.2 * count)
        assert found.freedom == kept - 1
        assert found.estimate == pytest.approx(stats.trim_mean(differences, 0.2))
        # Tukey and McLaughlin divide the squares by (n - 1) kept² / n where Yuen divides by (kept - 1) kept.
        theirs = float(stats.mstats.trimmed_stde(differences, limits=(0.2, 0.2)))
        shares = int(0.2 * count) / count
        theirs *= (1 - 0.4) / (1 - 2 * shares)  # scipy takes the nominal share cut, not the one that was
        assert found.error == pytest.approx(theirs * math.sqrt((count - 1) * kept / count / (kept - 1)))
        assert found.error > theirs


class TestPairs:
    def test_what_a_pair_shares_falls_out(self):
        shared = normal(9, 8, spread=10.0)
        base = [value + small for value, small in zip(shared, normal(10, 8, spread=0.01), strict=True)]
        now = [value + 1 + small for value, small in zip(shared, normal(11, 8, spread=0.01), strict=True)]
        paired, unpaired = compare(base, now, paired=True), compare(base, now)
        assert paired.estimate == pytest.approx(1, abs=0.02)
        assert paired.error < 0.01 < 1 < unpaired.error

    def test_pairs_keep_the_order_of_the_processes(self):
        base = normal(12, 8)
        assert compare(base, base, paired=True).error == 0
        assert compare(base, base[1:] + base[:1], paired=True).error > 0

    def test_a_process_without_its_partner_is_an_error(self):
        with pytest.raises(ValueError, match="zip"):
            compare([1.0, 2.0], [1.0, 2.0, 3.0], paired=True)


class TestOneOutlyingProcess:
    """Of eight processes one is 5 % off, the others within 0.1 %. A mean would follow it by 0.6 %."""

    OUTLIER = 0.05

    def sides(self, slowdown):
        return normal(13, 8, spread=0.001), normal(14, 8, center=slowdown, spread=0.001)

    @pytest.mark.parametrize("paired", [False, True])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_fakes_no_slowdown(self, paired, sign):
        base, now = self.sides(0.0)
        now[3] += sign * self.OUTLIER
        assert abs(compare(base, now, paired=paired).estimate) < 0.001

    @pytest.mark.parametrize("paired", [False, True])
    @pytest.mark.parametrize("side", ["base", "now"])
    def test_hides_none_of_three_per_cent(self, paired, side):
        base, now = self.sides(0.03)
        outlying, sign = (base, 1) if side == "base" else (now, -1)  # either makes the slowdown look smaller
        outlying[3] += sign * self.OUTLIER
        found = compare(base, now, paired=paired)
        assert found.estimate - found.half_width(0.01 / 40 / 4) > 0.02

    def test_a_fifth_of_the_processes_may_be_off(self):
        base, now = normal(15, 20, spread=0.001), normal(16, 20, spread=0.001)
        for index in range(4):
            now[index] += self.OUTLIER
        assert compare(base, now).estimate < 0.002
        now[4] += self.OUTLIER
        assert compare(base, now).estimate > 0.003


class TestWithoutSpread:
    @pytest.mark.parametrize(("n_base", "n_now", "paired"), [(1, 1, False), (1, 1, True)])
    def test_one_observation_shows_none(self, n_base, n_now, paired):
        assert compare([0.0] * n_base, [1.0] * n_now, paired=paired) is None

    @pytest.mark.parametrize("paired", [False, True])
    @pytest.mark.parametrize("count", [2, 4, 8])
    def test_equal_values_are_known_exactly(self, count, paired):
        found = compare([1.0] * count, [1.25] * count, paired=paired)
        assert (found.estimate, found.error, found.half_width(1e-9)) == (0.25, 0.0, 0.0)
