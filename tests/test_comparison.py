import math

import numpy as np
import pytest
from scipy import stats

from covidjax.comparison import mean_interval, paired_difference


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired_difference_is_the_paired_t_test(n: int) -> None:
    random = np.random.default_rng(n)
    values, others = random.normal(0.80, 0.02, n), random.normal(0.82, 0.02, n)
    expected = stats.ttest_rel(values, others)
    low, high = expected.confidence_interval(0.95)
    found = paired_difference(values.tolist(), others.tolist())
    assert found.n == n
    assert found.mean == pytest.approx((values - others).mean(), rel=1e-12)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue), rel=1e-9)


def test_mean_interval_is_the_one_sample_t_test() -> None:
    values = [0.81, 0.84, 0.79, 0.86]
    expected = stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue), rel=1e-9)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))


def test_pairing_finds_what_the_spread_over_seeds_hides() -> None:
    others = [0.70, 0.80, 0.90]
    values = [0.69, 0.785, 0.891]
    assert paired_difference(values, others).below_zero
    assert stats.ttest_ind(values, others).pvalue > 0.5
    assert not paired_difference(others, values).below_zero


@pytest.mark.parametrize("values", [[], [0.8]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    found = paired_difference(values, [value + 0.5 for value in values])
    assert found.n == len(values)
    assert all(math.isnan(number) for number in (found.low, found.high, found.deviation, found.p))
    assert not found.below_zero


def test_equal_differences_have_an_interval_of_width_zero() -> None:
    equal = paired_difference([0.5, 0.25], [0.5, 0.25])
    assert (equal.mean, equal.low, equal.high, equal.p) == (0.0, 0.0, 0.0, 1.0)
    assert not equal.below_zero
    worse = paired_difference([0.5, 0.25], [0.75, 0.5])
    assert (worse.mean, worse.low, worse.high, worse.p) == (-0.25, -0.25, -0.25, 0.0)
    assert worse.below_zero


def test_values_without_a_partner_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.5, 0.6], [0.5])
