"""Differences with their 95 % intervals: over repetitions by Student's t-distribution, on the same images by pairs."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from covidjax.metrics import bootstrap

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its interval. n: values; deviation: their standard deviation (n - 1).

    low, high and deviation are NaN with fewer than two values, the mean with none; p: two-sided, of the mean being 0.
    """

    mean: float
    low: float
    high: float
    deviation: float
    n: int
    p: float

    def is_worse(self, direction: int) -> bool:
        """Whether the whole interval lies on the bad side of 0; never with fewer than two values.

        direction: 1 where higher is better, else -1.
        """
        return (self.high if direction > 0 else -self.low) < 0


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of independent values that are all finite.

    Values that are all equal have an interval of width 0, and p is 0, or 1 where they are 0.
    """
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, math.nan)
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1, math.nan)
    deviation = float(np.std(values, ddof=1))
    error = deviation / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, deviation, n, p)


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """The mean of values[i] - others[i], as in the paired t-test: pair i shares a seed, say.

    Raises ValueError where the lengths differ.
    """
    return mean_interval([a - b for a, b in zip(values, others, strict=True)])


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two classifiers on the same images: the difference of their accuracies, first minus second.

    low, high: of its 95 % interval, NaN where there is one cluster; only_first, only_second: images that one of them
    alone has right; p: two-sided, of McNemar's exact test, which takes images as independent.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float


def paired_accuracy(
    first: np.ndarray, second: np.ndarray, clusters: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> Paired:
    """Compares two classifiers image by image.

    first, second: [n] bool, whether each is right; clusters: [n] int, 0 to the number of clusters - 1, the patients or,
    where they are unknown, the images: a bootstrap draws them whole, and the interval is that of its percentiles.
    """
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    differing = only_first + only_second
    p = float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0
    gains = first.astype(np.float64) - second
    samples = bootstrap.resampled(
        lambda weights: {"": weights @ gains / weights.sum(axis=1)}, clusters, seed, resamples
    )
    low, high = bootstrap.interval(samples[""]) or (math.nan, math.nan)
    return Paired(float(gains.mean()), low, high, only_first, only_second, p)
