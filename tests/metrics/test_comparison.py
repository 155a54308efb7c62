import math

import numpy as np
import pytest
from scipy import stats

from covidjax.metrics.comparison import Judged, holm, mean_interval, paired_accuracy, paired_difference, paired_figures


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


def judged(probability: float, generator: np.random.Generator, count: int = 40) -> Judged:
    """A network that is right with this probability."""
    right = generator.random(count) < probability
    names = tuple(map(str, range(count)))
    return Judged(names, names, names, right, lambda weights: {"accuracy": weights @ right / weights.sum(axis=1)})


def test_interval_of_a_pair_is_that_of_paired_accuracy_for_every_pair() -> None:
    generator = np.random.default_rng(0)
    networks = [judged(chance, generator) for chance in (0.9, 0.7, 0.5)]
    clusters = np.arange(40) // 2
    found = paired_figures(networks, clusters, resamples=300)
    assert [(each.first, each.second) for each in found] == [(0, 1), (0, 2), (1, 2)]
    for each in found:
        first, second = (networks[number].correct for number in (each.first, each.second))
        assert first is not None and second is not None
        alone = paired_accuracy(first, second, clusters, resamples=300)
        assert (each.value, each.low, each.high) == pytest.approx((alone.difference, alone.low, alone.high))
    same = paired_figures([networks[0], networks[0]], clusters, resamples=300)[0]
    assert (same.value, same.p) == (0.0, 1.0)


def test_holm_gives_the_values_of_its_definition() -> None:
    # The example of Holm 1979's procedure: 4, 3, 2, 1 times the ordered values, never falling, at most 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    kept = holm([math.nan, 0.02])
    assert math.isnan(kept[0]) and kept[1] == 0.02


@pytest.mark.slow
def test_paired_bootstrap_by_patient_covers_the_true_difference_and_keeps_its_level() -> None:
    generator, covered, rejected, draws = np.random.default_rng(3), 0, 0, 1000
    clusters = np.repeat(np.arange(60), 3)
    for _ in range(draws):
        chances = np.repeat(generator.beta(4, 1, 60), 3)  # both networks find the same patients hard
        networks = []
        for _ in range(2):
            right = generator.random(180) < chances
            names = tuple(map(str, range(180)))
            networks.append(Judged(names, names, names, right, lambda w, r=right: {"accuracy": w @ r / w.sum(axis=1)}))  # type: ignore[misc]
        one = paired_figures(networks, clusters, resamples=400)[0]
        covered += one.low <= 0 <= one.high
        rejected += one.p < 0.05
    assert 0.93 <= covered / draws <= 0.97
    assert 0.03 <= rejected / draws <= 0.07
