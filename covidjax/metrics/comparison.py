"""Differences with their 95 % intervals: over repetitions by Student's t-distribution, on the same images by pairs."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from covidjax.metrics import bootstrap
from covidjax.metrics.classification import number, proportion_interval

CONFIDENCE = 0.95
RESAMPLES = 5000  # so that the least p, 2 / 5001, survives the correction for some ten pairs


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
    only_first, only_second, p = mcnemar(first, second)
    gains = first.astype(np.float64) - second
    samples = bootstrap.resampled(
        lambda weights: {"": weights @ gains / weights.sum(axis=1)}, clusters, seed, resamples
    )
    low, high = bootstrap.interval(samples[""], int(clusters.max()) + 1) or (math.nan, math.nan)
    return Paired(float(gains.mean()), low, high, only_first, only_second, p)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test, two-sided: two [n] bool, right or not -> those that one alone has right of each, and p."""
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    differing = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """The answers of one network on a split, as comparisons take them.

    names, patients: n identifiers; truth: n labels, or none where they depend on how the network sees an image
    correct: [n] bool, whether each answer is right; None where answers are right in degrees
    figures: weights [some, n] float64, how often each example counts -> arrays [some] by name
    """

    names: tuple[str, ...]
    patients: tuple[str, ...]
    truth: tuple[Any, ...]
    correct: np.ndarray | None
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]]

    def among(self, inside: np.ndarray) -> "Judged":
        """The answers on some of the images. inside: [n] bool."""

        def figures(weights: np.ndarray) -> Mapping[str, np.ndarray]:
            whole = np.zeros((len(weights), len(inside)))
            whole[:, inside] = weights
            return self.figures(whole)

        names, patients, truth = (
            tuple(itertools.compress(each, inside)) for each in (self.names, self.patients, self.truth)
        )
        return Judged(names, patients, truth, None if self.correct is None else self.correct[inside], figures)

    def with_intervals(self, clusters: np.ndarray, *, resamples: int) -> dict[str, Any]:
        """Each figure and its interval, as an evaluation makes them; None where a figure is undefined.

        clusters: [n] int of `bootstrap.clusters_of`.
        """
        every = np.ones(len(clusters), bool)
        values = {name: one[0] for name, one in self.figures(every[None].astype(np.float64)).items()}
        samples = bootstrap.resampled(self.figures, clusters, 0, resamples)
        fewest = bootstrap.fewest(clusters, np.array(self.truth)) if self.truth else int(clusters.max()) + 1
        found: dict[str, Any] = {}
        for name, value in values.items():
            found[name] = number(value)
            found[f"{name}_ci95"] = bootstrap.interval(samples[name], fewest) if math.isfinite(value) else None
        if self.correct is not None:
            found["accuracy_ci95"] = proportion_interval(int(self.correct.sum()), every, clusters, samples["accuracy"])
        return found


@dataclasses.dataclass(frozen=True)
class Difference:
    """A figure of one network minus that of another on the same images, and its 95 % interval.

    first, second: numbers of the networks; low, high, p: NaN where there is one cluster; p: two-sided, of the
    bootstrap; p_holm: the same, corrected for all pairs of the figure.
    """

    figure: str
    first: int
    second: int
    value: float
    low: float
    high: float
    p: float
    p_holm: float


def paired_figures(
    networks: Sequence[Judged], clusters: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Difference]:
    """Each figure of each pair of networks, the pairs of a figure one after another.

    networks: of the same n images; clusters: [n] int of `bootstrap.patient_clusters`. A bootstrap draws them whole, the
    same for all networks; the interval is that of its percentiles, and p twice the smaller share of resamples on either
    side of 0, both counted with the observed one (Davison and Hinkley 1997, section 4.2.5).
    """

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        each = [network.figures(weights) for network in networks]
        return {name: np.stack([own[name] for own in each], axis=1) for name in each[0]}

    values = {name: found[0] for name, found in figures(np.ones((1, len(clusters)))).items()}
    samples = bootstrap.resampled(figures, clusters, seed, resamples)
    pairs, found = list(itertools.combinations(range(len(networks)), 2)), []
    for name in values:
        drawn = {(a, b): samples[name][:, a] - samples[name][:, b] for a, b in pairs}
        ps = [_bootstrap_p(drawn[pair]) for pair in pairs]
        for (a, b), p, corrected in zip(pairs, ps, holm(ps), strict=True):
            low, high = bootstrap.interval(drawn[a, b], int(clusters.max()) + 1) or (math.nan, math.nan)
            found.append(Difference(name, a, b, float(values[name][a] - values[name][b]), low, high, p, corrected))
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (1979); those that are NaN stay and count not."""
    order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    corrected, least = list(ps), 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        corrected[place] = least
    return corrected


def _bootstrap_p(differences: np.ndarray) -> float:
    """NaN without a finite one."""
    drawn = differences[np.isfinite(differences)]
    if not len(drawn):
        return math.nan
    return min(1.0, 2 * float(min(np.sum(drawn <= 0), np.sum(drawn >= 0)) + 1) / (len(drawn) + 1))
