"""Curves are scikit-learn's, their bands those of resampled patients."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics

from covidjax.metrics import curves
from covidjax.metrics.prediction_table import Predictions
from tests.predictions import CLASSES, make_predictions, make_report


def predictions(seed: int, count: int = 120) -> Predictions:
    table, labels = make_predictions(seed, count)
    names = tuple(map(str, range(count)))
    return Predictions(names, tuple(str(number // 2) for number in range(count)), labels, table, CLASSES)


@pytest.mark.parametrize("index", range(len(CLASSES)))
def test_curves_and_areas_are_those_of_scikit_learn(index: int) -> None:
    found = predictions(index)
    both = curves.curves(found, index)
    assert both is not None
    roc, recall = both
    scores, positive = found.probabilities[:, index], found.labels == index
    np.testing.assert_array_equal([roc.x, roc.y], metrics.roc_curve(positive, scores)[:2])
    assert roc.area == metrics.roc_auc_score(positive, scores)
    precision, sensitivity, _ = metrics.precision_recall_curve(positive, scores, drop_intermediate=True)
    np.testing.assert_array_equal([recall.y, recall.x], [precision, sensitivity])
    assert recall.area == metrics.average_precision_score(positive, scores)
    report = make_report(found.probabilities, found.labels)["per_class"][CLASSES[index]]
    assert report["average_precision"] == pytest.approx(recall.area, abs=1e-12)
    assert report["average_precision_ci95"][0] < recall.area < report["average_precision_ci95"][1]


def test_a_weighting_is_the_curve_of_examples_that_are_repeated() -> None:
    found, generator = predictions(3, 40), np.random.default_rng(0)
    scores, positive = found.probabilities[:, 1], found.labels == 1
    weights = generator.integers(0, 3, (5, 40)).astype(np.float64)
    drawn = curves.on_grid(scores, positive, weights)
    for row, times in enumerate(weights.astype(int)):
        own, is_positive = np.repeat(scores, times), np.repeat(positive, times)
        false, true, _ = metrics.roc_curve(is_positive, own, drop_intermediate=False)
        np.testing.assert_allclose(drawn["sensitivity"][row], np.interp(curves.GRID, false, true), atol=1e-12)
        at_least = [
            max((one for one in np.unique(own) if np.mean(own[is_positive] >= one) >= share - 1e-12), default=own.min())
            for share in curves.GRID
        ]
        expected = [is_positive[own >= one].mean() for one in at_least[1:]]
        np.testing.assert_allclose(drawn["precision"][row][1:], expected, atol=1e-12)


def test_bands_hold_the_curve_and_a_class_without_examples_has_none() -> None:
    found = predictions(4)
    both = curves.curves(found, 0)
    assert both is not None
    at_grid = np.interp(curves.GRID, both[0].x, both[0].y)
    assert np.mean((both[0].low <= at_grid + 1e-9) & (at_grid <= both[0].high + 1e-9)) > 0.9
    assert np.all(both[1].low <= both[1].high)
    assert curves.curves(dataclasses.replace(found, labels=np.ones(120, np.int32)), 0) is None
    alone = curves.curves(dataclasses.replace(found, patients=("one",) * 120), 0)
    assert alone is not None and np.isnan(alone[0].low).all()
