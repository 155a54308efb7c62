"""Means over repetitions and differences of pairs, with their 95 % intervals by Student's t-distribution."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

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

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below 0; never with fewer than two values."""
        return self.high < 0


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
