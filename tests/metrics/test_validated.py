"""What validation decides is found on validation alone, and measured on other images."""

import numpy as np
import pytest

from covidjax.metrics import validated
from covidjax.metrics.prediction_table import Predictions
from tests.predictions import CLASSES, make_examples


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def test_temperature_undoes_a_network_that_is_too_sure() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1.5, (6000, 3))
    labels = np.array([generator.choice(3, p=row) for row in softmax(logits)])
    sure = softmax(3 * logits)
    found = validated.temperature_of(sure, labels)
    assert found == pytest.approx(3, rel=0.08)
    np.testing.assert_allclose(validated.tempered(sure, 3.0), softmax(logits), atol=1e-12)
    losses = [validated.mean_loss(validated.tempered(sure, found * part), labels) for part in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)


def test_thresholds_are_those_of_a_search_over_all_scores() -> None:
    generator = np.random.default_rng(1)
    positive = generator.random(200) < 0.3
    scores = np.round(np.clip(generator.normal(0.4 + 0.3 * positive, 0.2), 0, 1), 2)
    found = validated.thresholds(scores, positive)
    assert found is not None
    sensitivity = {each: (scores[positive] >= each).mean() for each in np.unique(scores)}
    assert found["sensitivity_0.95"] == max(each for each, share in sensitivity.items() if share >= 0.95)
    youden = {each: share - (scores[~positive] >= each).mean() for each, share in sensitivity.items()}
    assert youden[found["youden"]] == pytest.approx(max(youden.values()))
    assert validated.thresholds(scores, np.zeros(200, bool)) is None


def test_points_of_validation_are_measured_on_the_other_images() -> None:
    generator = np.random.default_rng(2)

    def answers(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        return softmax(generator.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[labels]), labels

    table, labels = answers(90)
    names = tuple(map(str, range(90)))
    val = Predictions(names, names, labels.astype(np.int32), table, CLASSES)
    own, truth = answers(60)
    examples = make_examples(truth)
    found = validated.measured(validated.choose(val), own, examples)
    assert found["calibrated"]["temperature"] == validated.temperature_of(table, labels)
    for index, name in enumerate(CLASSES):
        chosen = validated.thresholds(table[:, index], labels == index)
        assert chosen is not None
        for point, least in chosen.items():
            told = found["operating_points"][name][point]
            assert told["threshold"] == least
            assert told["sensitivity"] == pytest.approx((own[truth == index, index] >= least).mean())
            assert told["specificity"] == pytest.approx((own[truth != index, index] < least).mean())
            assert told["sensitivity_ci95"][0] <= told["sensitivity"] <= told["sensitivity_ci95"][1]
