"""Intervals by a bootstrap that draws whole clusters: patients or, where they are unknown, images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from covidjax.data.examples import Examples

WEIGHTS_AT_ONCE = 2**21  # elements of a block of weights: 16 MiB


def clusters_of(examples: Examples) -> np.ndarray:
    """The cluster of each of n examples, [n] int: 0 to the number of clusters - 1, each of them in use."""
    return patient_clusters(examples.patients, known=examples.patients_known)


def patient_clusters(patients: Sequence[str], *, known: bool) -> np.ndarray:
    """`clusters_of` examples of these patients. known: whether patients are known, or stand for single images."""
    return np.unique(np.asarray(patients), return_inverse=True)[1] if known else np.arange(len(patients))


def method(examples: Examples, resamples: int) -> str:
    """How the intervals were made, in words."""
    return described(resamples, known=examples.patients_known)


def described(resamples: int, *, known: bool) -> str:
    """`method`, where patients are known or not."""
    unit = "by patient" if known else "by image (no patient ids)"
    return f"bootstrap {unit}, {resamples} resamples, 95 % percentile, widened where patients are few"


def resample_weights(clusters: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """How often each example is drawn when whole clusters are drawn with replacement, as many as there are.

    clusters: [n] int of `clusters_of` -> [resamples, n] float64, whole numbers.
    """
    count = int(clusters.max()) + 1
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples)[:, clusters].astype(np.float64)


def resampled(
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]], clusters: np.ndarray, seed: int, resamples: int
) -> dict[str, np.ndarray]:
    """Figures of resampled examples: arrays [resamples, ...] by name, without rows where there is a single cluster.

    figures: weights [some, n] float64, how often each example counts -> arrays [some, ...] by name.
    """
    count = resamples if clusters.max() > 0 else 0
    generator, block = np.random.default_rng(seed), max(1, WEIGHTS_AT_ONCE // len(clusters))
    parts = [
        figures(resample_weights(clusters, generator, min(block, resamples - start)))
        for start in range(0, max(1, count), block)
    ]
    return {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}


def percentiles(count: int | None) -> tuple[float, float]:
    """The percentiles that bound 95 %: 2.5 and 97.5, and further out the fewer patients a figure is of.

    Plain ones are too narrow for few: these are expanded (Hesterberg 2015, The American Statistician 69, 371 to 386).
    count: patients, or images where patients are unknown; None: many.
    """
    if count is None or count < 2:
        return 2.5, 97.5
    low = 100 * float(stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1)))
    return low, 100 - low


def fewest(clusters: np.ndarray, labels: np.ndarray) -> int:
    """The number of clusters with an example of the rarest class that is there, or of the rarest answer to a finding.

    clusters: [n] int; labels: [n], or findings [n, findings] int, 1 present, 0 absent, below 0 not known.
    """
    if labels.ndim == 1:
        parts = [labels == label for label in np.unique(labels)]
    else:
        parts = [own == answer for own in labels.T if {0, 1} <= set(own.tolist()) for answer in (0, 1)]
    return min((len(np.unique(clusters[part])) for part in parts), default=len(np.unique(clusters)))


def interval(samples: np.ndarray, count: int | None = None) -> Any:
    """The `percentiles` of a figure's samples, [low, high], but for undefined ones; None where there are none."""
    defined = samples[np.isfinite(samples)]
    return np.percentile(defined, percentiles(count)).tolist() if len(defined) else None
