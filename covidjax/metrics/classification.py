"""Figures of a classifier with their intervals.

In numpy on the host: a split is evaluated once, and its predictions fit in memory many times over.
"""

import functools
import math
from typing import Any

import numpy as np
from scipy import stats

from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.metrics import bootstrap
from covidjax.metrics.prediction_table import require_finite


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a binomial proportion (Wilson 1927).

    It takes the trials as independent: with several images of a patient it is too narrow.
    Without any trial nothing is known: a total of 0 gives (0.0, 1.0).
    """
    if total == 0:
        return 0.0, 1.0
    found = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts: rows true, columns predicted. labels, predicted: [n] int -> [num_classes, num_classes] int64."""
    flat = np.bincount(labels.astype(np.int64) * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The mean distance between stated probability and share of right predictions (Guo et al. 2017).

    probabilities: [n, classes] float; labels: [n] int; bins: of equal width on [0, 1], each closed on the right.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    index = np.digitize(confidences, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)
    return float(np.abs(np.bincount(index, weights=correct - confidences)).sum() / len(labels))


def auroc(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area under the ROC curve by mid-ranks (Mann and Whitney) under many weightings at once: a tie counts half.

    scores: [n] float; is_positive: [n] bool; weights: [resamples, n] float64, not negative, of which a whole one, k, is
    the same as the example repeated k times -> [resamples] float64, NaN where the positives or the negatives weigh
    nothing.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    tie_starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    weights = weights[:, order]
    positive = np.add.reduceat(np.where(is_positive[order], weights, 0.0), tie_starts, axis=1)
    negative = np.add.reduceat(np.where(is_positive[order], 0.0, weights), tie_starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def average_precision(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area below the precision-recall curve in steps, as scikit-learn has it, under many weightings at once.

    Arguments are those of `auroc` -> [resamples] float64, NaN where the positives weigh nothing.
    """
    order = np.argsort(-scores, kind="stable")
    tie_starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    weights = weights[:, order]
    positive = np.add.reduceat(np.where(is_positive[order], weights, 0.0), tie_starts, axis=1)
    hits, called = np.cumsum(positive, axis=1), np.cumsum(np.add.reduceat(weights, tie_starts, axis=1), axis=1)
    precision = np.divide(hits, called, out=np.zeros(hits.shape), where=called > 0)
    return ratio((positive * precision).sum(axis=1), hits[:, -1])


def weighted_figures(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of a split under many weightings of its examples at once.

    probabilities: [n, classes] float64, finite; labels: [n] int; weights: [resamples, n] float64, how often each
    example counts -> by name: 'precision', 'recall', 'specificity', 'f1', 'auroc', 'average_precision' [resamples,
    classes], 'accuracy', 'balanced_accuracy', 'macro_f1', 'macro_auroc' [resamples], NaN where `classification_report`
    calls them undefined.
    """
    one_hot = np.eye(probabilities.shape[1])
    true, guess = one_hot[labels], one_hot[probabilities.argmax(axis=1)]
    sums = weights @ np.concatenate([true * guess, true, guess], axis=1)
    hits, support, predictions = np.split(sums, 3, axis=1)
    rest = weights.sum(axis=1, keepdims=True) - support
    answers = [(probabilities[:, index], labels == index) for index in range(len(one_hot))]
    of_classes = {
        "precision": ratio(hits, predictions),
        "recall": ratio(hits, support),
        "specificity": ratio(rest - predictions + hits, rest),
        "f1": ratio(2 * hits, support + predictions),
        "auroc": np.stack([auroc(*own, weights) for own in answers], axis=1),
        "average_precision": np.stack([average_precision(*own, weights) for own in answers], axis=1),
    }
    return {
        **of_classes,
        "accuracy": hits.sum(axis=1) / weights.sum(axis=1),
        "balanced_accuracy": _mean_over(support > 0, of_classes["recall"]),
        "macro_f1": _mean_over(support > 0, of_classes["f1"]),
        "macro_auroc": _mean_over(support > 0, of_classes["auroc"]),
    }


def validation_figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """'auroc' (the mean over the classes), 'macro_f1' and 'balanced_accuracy', as `classification_report` has them.

    probabilities: [n, classes] float, n above 0; labels: [n] int. NaN of figures that are undefined, and of all where
    a probability is not finite.
    """
    names = {"auroc": "macro_auroc", "macro_f1": "macro_f1", "balanced_accuracy": "balanced_accuracy"}
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(names, math.nan)
    found = weighted_figures(probabilities.astype(np.float64), labels, np.ones((1, len(labels))))
    return {name: float(found[key][0]) for name, key in names.items()}


def classification_report(
    probabilities: np.ndarray, examples: Examples, loss: float, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """The content of evaluation_<split>.json but for `checkpoint`, of Python numbers that are finite, or None.

    probabilities: [n, classes] float, of the examples; loss: mean over them.

    A figure with denominator 0 is undefined, and None with its interval: precision of a class that was never predicted,
    recall and average precision of a class without examples, F1 = 2 TP / (2 TP + FP + FN) of a class with neither,
    AUROC of a class that has no example or all of them, a loss that is not finite. F1 is 0 where only TP is 0.
    Balanced accuracy and the macro figures are means over the classes that are present in the labels.

    Intervals, 95 %: percentiles of a bootstrap that draws whole patients or, where they are unknown, images, widened by
    the number of those with the rarest class of a figure (`bootstrap.percentiles`); of proportions Wilson's unless a
    patient has several images, as it takes images as independent. Resamples in which
    the figure is undefined are left out. A single patient gives no interval; and no bootstrap sees beyond its examples:
    a perfect figure has an interval of width 0, but for a proportion of 0 or 1, which has Wilson's over its patients.

    Raises UserError where there are no examples or probabilities are not finite.
    """
    labels, classes = examples.labels, examples.classes
    if len(labels) == 0:
        raise UserError(f"split {examples.split!r} has no examples to evaluate: choose a split that has some")
    require_finite(probabilities, f"split {examples.split!r}")
    probabilities = probabilities.astype(np.float64)
    num_classes, num_examples = len(classes), len(labels)
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, num_classes)
    hits, support, predictions = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    rejections = num_examples - support - predictions + hits
    figures = functools.partial(weighted_figures, probabilities, labels)
    found = {key: values[0] for key, values in figures(np.ones((1, num_examples))).items()}
    clusters = bootstrap.clusters_of(examples)
    samples = bootstrap.resampled(figures, clusters, seed, resamples)
    grouped, rarest = clusters.max() + 1 < num_examples, bootstrap.fewest(clusters, labels)

    def proportion(name: str, successes: int, among: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
        """A share of the examples `among` [n] bool and its interval. drawn: the share in each resample."""
        total = int(among.sum())
        if total == 0:
            return {name: None, f"{name}_ci95": None}
        bounds = proportion_interval(int(successes), among, clusters, drawn)
        return {name: float(successes / total), f"{name}_ci95": bounds}

    per_class = {}
    for index, name in enumerate(classes):
        per_class[name] = {
            **proportion("precision", hits[index], predicted == index, samples["precision"][:, index]),
            **proportion("recall", hits[index], labels == index, samples["recall"][:, index]),
            **proportion("specificity", rejections[index], labels != index, samples["specificity"][:, index]),
            **{
                key: value
                for figure in ("f1", "auroc", "average_precision")
                for key, value in _bootstrapped(
                    figure, found[figure][index], samples[figure][:, index], bootstrap.fewest(clusters, labels == index)
                ).items()
            },
            "support": int(support[index]),
        }
    return {
        "split": examples.split,
        "num_examples": num_examples,
        "loss": number(loss),
        **proportion("accuracy", hits.sum(), np.ones(num_examples, bool), samples["accuracy"]),
        **_bootstrapped("balanced_accuracy", found["balanced_accuracy"], samples["balanced_accuracy"], rarest),
        **_bootstrapped("macro_f1", found["macro_f1"], samples["macro_f1"], rarest),
        **_bootstrapped("macro_auroc", found["macro_auroc"], samples["macro_auroc"], rarest),
        "ece": expected_calibration_error(probabilities, labels),
        "confusion_matrix": matrix.tolist(),
        "classes": list(classes),
        "per_class": per_class,
        "intervals": {
            "proportions": f"{bootstrap.method(examples, resamples)}; of 0 and 1 Wilson 95 % over patients"
            if grouped
            else "Wilson 95 %",
            "auroc, f1 and balanced accuracy": bootstrap.method(examples, resamples),
        },
        "research_use_only": True,
    }


def accuracy_intervals(
    correct: np.ndarray, examples: Examples, *, seed: int = 0, resamples: int = 1000
) -> list[list[float] | None]:
    """The intervals of the accuracies of several networks, each as `classification_report` has it.

    correct: [networks, n] bool, or shares from 0 to 1, of the same examples -> [low, high] of each network.
    """
    clusters, every = bootstrap.clusters_of(examples), np.ones(len(examples), bool)
    right = correct.T.astype(np.float64)
    samples = bootstrap.resampled(
        lambda weights: {"accuracy": weights @ right / weights.sum(axis=1, keepdims=True)}, clusters, seed, resamples
    )["accuracy"]
    return [
        proportion_interval(int(own.sum()), every, clusters, drawn)
        if np.isin(own, (0, 1)).all()
        else bootstrap.interval(drawn, int(clusters.max()) + 1)
        for own, drawn in zip(correct, samples.T, strict=True)
    ]


def proportion_interval(
    successes: int, among: np.ndarray, clusters: np.ndarray, drawn: np.ndarray
) -> list[float] | None:
    """That of a share of the examples `among` [n] bool, at least one. drawn: the share in each resample."""
    total, grouped = int(among.sum()), clusters.max() + 1 < len(clusters)
    if grouped and 0 < successes < total:
        found: list[float] | None = bootstrap.interval(drawn, len(np.unique(clusters[among])))
        return found
    count = len(np.unique(clusters[among])) if grouped else total  # of what is independent
    return list(wilson_interval(count if successes == total else successes, count))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def _mean_over(present: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the values that are present; NaN where one of those is undefined."""
    return np.where(present, values, 0.0).sum(axis=-1) / present.sum(axis=-1)


def _bootstrapped(name: str, value: Any, samples: np.ndarray, count: int) -> dict[str, Any]:
    return {name: number(value), f"{name}_ci95": bootstrap.interval(samples, count) if np.isfinite(value) else None}


def number(value: Any) -> float | None:
    """A figure as JSON has it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None
