import math

import numpy as np
import pytest
from scipy import stats

from covidjax.metrics.comparison import mean_interval, paired_accuracy, paired_difference


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


@pytest.mark.parametrize("values", [[], [0.8]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    found = paired_difference(values, [value + 0.5 for value in values])
    assert found.n == len(values)
    assert all(math.isnan(number) for number in (found.low, found.high, found.deviation, found.p))
    assert not found.is_worse(1)


def test_equal_differences_have_an_interval_of_width_zero() -> None:
    equal = paired_difference([0.5, 0.25], [0.5, 0.25])
    assert (equal.mean, equal.low, equal.high, equal.p) == (0.0, 0.0, 0.0, 1.0)
    assert not equal.is_worse(1)
    worse = paired_difference([0.5, 0.25], [0.75, 0.5])
    assert (worse.mean, worse.low, worse.high, worse.p) == (-0.25, -0.25, -0.25, 0.0)
    assert worse.is_worse(1)


def test_two_classifiers_are_compared_by_the_images_that_one_of_them_has_right() -> None:
    first = np.array([1, 1, 1, 1, 1, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 0, 0, 1, 1, 0], bool)
    found = paired_accuracy(first, second, np.arange(8))
    assert (found.only_first, found.only_second, found.difference) == (5, 1, 0.5)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)  # 5 or 6 heads of 6, or as many tails
    assert found.low < 0.5 < found.high
    turned = paired_accuracy(second, first, np.arange(8))
    assert (turned.difference, turned.p) == (-0.5, found.p)


def test_interval_of_a_paired_difference_draws_whole_patients() -> None:
    gains = np.repeat(np.random.default_rng(0).integers(-1, 2, 30), 5)  # five images of a patient fare alike
    first, second = gains == 1, gains == -1
    by_image = paired_accuracy(first, second, np.arange(150))
    by_patient = paired_accuracy(first, second, np.repeat(np.arange(30), 5))
    assert by_patient.high - by_patient.low > 1.8 * (by_image.high - by_image.low)
    assert math.isnan(paired_accuracy(first, second, np.zeros(150, int)).low)
