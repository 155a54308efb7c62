"""Of 1000 draws of patients, 93 to 97 % give a 95 % interval that holds the figure of the population."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from covidjax.metrics import classification
from tests.predictions import CLASSES, make_examples

pytestmark = pytest.mark.slow

DRAWS, RESAMPLES = 1000, 500
POPULATION = 200_000  # patients, of which the figures are the true ones


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Patients of two images each. labels, probabilities: [n], [n, classes]."""

    patients: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray


def draw(generator: np.random.Generator, patients: int, images: int = 2, skill: float = 1.2) -> Drawn:
    """Answers whose errors the images of a patient share in part."""
    labels = np.repeat(generator.choice(3, patients, p=[0.5, 0.3, 0.2]), images)
    shared = np.repeat(generator.normal(0, 0.8, (patients, 3)), images, axis=0)
    logits = skill * np.eye(3)[labels] + shared + generator.normal(0, 0.8, (len(labels), 3))
    powers = np.exp(logits)
    return Drawn(
        tuple(np.repeat(np.arange(patients), images).astype(str)), labels, powers / powers.sum(1, keepdims=True)
    )


def figures(one: Drawn) -> dict[str, np.ndarray]:
    return classification.weighted_figures(one.probabilities, one.labels, np.ones((1, len(one.labels))))


def covered(found: Iterator[tuple[list[float] | None, float]]) -> float:
    inside = [bounds is not None and bounds[0] <= truth <= bounds[1] for bounds, truth in found]
    return float(np.mean(inside))


@pytest.mark.parametrize(("patients", "images"), [(60, 2), (150, 1), (300, 2)])
def test_intervals_of_labels_hold_the_truth(patients: int, images: int) -> None:
    truth = figures(draw(np.random.default_rng(0), POPULATION, images))
    generator, reports = np.random.default_rng(1), []
    for _ in range(DRAWS):
        one = draw(generator, patients, images)
        examples = make_examples(one.labels, patients=one.patients)
        reports.append(classification.classification_report(one.probabilities, examples, 0.0, resamples=RESAMPLES))
    shares = {
        name: covered((report[f"{name}_ci95"], float(truth[name][0])) for report in reports)
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")
    }
    for index, name in enumerate(CLASSES):
        for figure in ("recall", "precision", "specificity", "f1", "auroc", "average_precision"):
            own = ((report["per_class"][name][f"{figure}_ci95"], float(truth[figure][0, index])) for report in reports)
            shares[f"{figure} {name}"] = covered(own)
    print(patients, images, shares)
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares
