"""ROC and precision-recall curves of a class against the rest, with bands by a bootstrap that draws whole patients."""

import dataclasses

import numpy as np
from sklearn import metrics

from covidjax.metrics import bootstrap
from covidjax.metrics.classification import ratio
from covidjax.metrics.prediction_table import Predictions

GRID = np.linspace(0.0, 1.0, 101)  # of the horizontal axis, where bands are
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A curve, its area and its band.

    x, y: [points] float64, as scikit-learn has them: false positive rate and sensitivity, or recall and precision,
    in steps; area: AUROC or average precision; low, high: [101] float64 on `GRID`, 95 % at each place for itself; NaN
    of a single patient.
    """

    x: np.ndarray
    y: np.ndarray
    area: float
    low: np.ndarray
    high: np.ndarray


def curves(found: Predictions, index: int, *, seed: int = 0) -> tuple[Curve, Curve] | None:
    """The ROC and the precision-recall curve of a class against the rest; None where either has no example."""
    scores, is_positive = found.probabilities[:, index], found.labels == index
    if is_positive.all() or not is_positive.any():
        return None
    false, true, _ = metrics.roc_curve(is_positive, scores)
    precision, recall, _ = metrics.precision_recall_curve(is_positive, scores, drop_intermediate=True)
    clusters = bootstrap.patient_clusters(found.patients, known=True)
    samples = bootstrap.resampled(lambda weights: on_grid(scores, is_positive, weights), clusters, seed, RESAMPLES)
    bands = {name: _band(drawn) for name, drawn in samples.items()}
    return (
        Curve(false, true, float(metrics.roc_auc_score(is_positive, scores)), *bands["sensitivity"]),
        Curve(recall, precision, float(metrics.average_precision_score(is_positive, scores)), *bands["precision"]),
    )


def on_grid(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Both curves under many weightings at once, [resamples, 101] each: NaN where positives or negatives weigh nothing.

    scores: [n] float; is_positive: [n] bool; weights: [resamples, n] float64.
    'sensitivity': at each false positive rate of `GRID`, between points on the line; 'precision': of the highest
    threshold at which recall reaches `GRID`.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))
    drawn = weights[:, order]
    hits = np.cumsum(np.where(is_positive[order], drawn, 0.0), axis=1)[:, ends]
    alarms = np.cumsum(np.where(is_positive[order], 0.0, drawn), axis=1)[:, ends]
    true, false = (
        ratio(hits, np.broadcast_to(hits[:, -1:], hits.shape)),
        ratio(alarms, np.broadcast_to(alarms[:, -1:], alarms.shape)),
    )
    precision = ratio(hits, hits + alarms)
    found = {name: np.full((len(weights), len(GRID)), np.nan) for name in ("sensitivity", "precision")}
    for row in np.flatnonzero((hits[:, -1] > 0) & (alarms[:, -1] > 0)):
        found["sensitivity"][row] = np.interp(GRID, np.append(0.0, false[row]), np.append(0.0, true[row]))
        reached = np.searchsorted(true[row], np.maximum(GRID, np.finfo(float).tiny))
        found["precision"][row] = precision[row, np.minimum(reached, len(ends) - 1)]
    return found


def _band(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    defined = samples[np.isfinite(samples).all(axis=1)]
    if not len(defined):
        return np.full(len(GRID), np.nan), np.full(len(GRID), np.nan)
    low, high = np.percentile(defined, [2.5, 97.5], axis=0)
    return low, high
