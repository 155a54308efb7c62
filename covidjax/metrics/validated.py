"""What the validation split decides and other images are measured by: a temperature and operating points."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import optimize
from sklearn import metrics

from covidjax.data.examples import Examples
from covidjax.metrics import bootstrap, classification
from covidjax.metrics.prediction_table import Predictions

SENSITIVITY = 0.95
LEAST, MOST = 0.05, 20.0  # of a temperature


def mean_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log probability of the true classes: [n, classes] float, [n] int."""
    least = np.finfo(np.float64).tiny
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], least)).mean())


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [n, classes] float64 as a softmax of logits divided by the temperature gives them."""
    logs = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float64).tiny)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def temperature_of(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the least mean loss (Guo et al. 2017), between `LEAST` and `MOST`: [n, classes], [n] int."""
    bounds = (np.log(LEAST), np.log(MOST))
    found = optimize.minimize_scalar(
        lambda log: mean_loss(tempered(probabilities, np.exp(log)), labels), bounds=bounds, method="bounded"
    )
    return float(np.exp(found.x))


def thresholds(scores: np.ndarray, is_positive: np.ndarray) -> dict[str, float] | None:
    """The least score called positive: at a sensitivity of `SENSITIVITY` or more, and at the greatest Youden index.

    scores: [n] float; is_positive: [n] bool. None where positives or negatives are missing.
    """
    if is_positive.all() or not is_positive.any():
        return None
    false, true, scores = (part[1:] for part in metrics.roc_curve(is_positive, scores, drop_intermediate=False))
    places = {"sensitivity_0.95": np.argmax(true >= SENSITIVITY), "youden": np.argmax(true - false)}
    return {name: float(scores[place]) for name, place in places.items()}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What the validation split decides, of the answers of one checkpoint.

    temperature: None of findings, which have none
    thresholds: by class against the rest, in label order, and by name of the point the least probability, as the
    network has it, that is called positive; None of a class that validation has no image of, or no other.
    """

    temperature: float | None
    thresholds: Mapping[str, Mapping[str, float] | None]

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities [n, classes] of the network with the temperature: [n, classes] float64."""
        return probabilities if self.temperature is None else tempered(probabilities, self.temperature)

    def called(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Whether each image is called positive, [n] bool by '<point>_<class>'. probabilities: of the network."""
        return {
            f"{point}_{name}": probabilities[:, index] >= least
            for index, (name, points) in enumerate(self.thresholds.items())
            for point, least in (points or {}).items()
        }


def choose(val: Predictions) -> Chosen:
    """The temperature and the operating points of predictions of the validation split."""
    found = {
        name: thresholds(val.probabilities[:, index], val.labels == index) for index, name in enumerate(val.classes)
    }
    return Chosen(temperature_of(val.probabilities, val.labels), found)


def measured(chosen: Chosen, probabilities: np.ndarray, examples: Examples) -> dict[str, Any]:
    """'calibrated' and 'operating_points' of evaluation_<split>.json, both chosen by the validation split alone.

    chosen: by the same checkpoint; probabilities: [n, classes] of the network, of the examples, which are others.
    calibrated: the temperature, ECE and mean loss with it. operating_points: by class against the rest and by
    name of the point the threshold, and sensitivity and specificity of the examples with their intervals.
    """
    calibrated, called = chosen.calibrated(probabilities), chosen.called(probabilities)
    points: dict[str, Any] = {}
    for index, (name, of_class) in enumerate(chosen.thresholds.items()):
        own = examples.labels == index
        points[name] = of_class and {
            point: {"threshold": least, **shares(called[f"{point}_{name}"], own, ~own, examples)}
            for point, least in of_class.items()
        }
    return {
        "calibrated": {
            "temperature": chosen.temperature,
            "ece": classification.expected_calibration_error(calibrated, examples.labels),
            "loss": mean_loss(calibrated, examples.labels),
        },
        "operating_points": points,
    }


def shares(called: np.ndarray, is_positive: np.ndarray, is_negative: np.ndarray, examples: Examples) -> dict[str, Any]:
    """Sensitivity and specificity with their intervals, of the examples: three [n] bool."""
    clusters = bootstrap.clusters_of(examples)
    shares = {"sensitivity": (called & is_positive, is_positive), "specificity": (~called & is_negative, is_negative)}

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: classification.ratio(weights @ hits, weights @ among) for name, (hits, among) in shares.items()}

    drawn, found = bootstrap.resampled(figures, clusters, seed=0, resamples=1000), dict[str, Any]()
    for name, (hits, among) in shares.items():
        right, total = int(hits.sum()), int(among.sum())
        found[name] = right / total if total else None
        bounds = classification.proportion_interval(right, among, clusters, drawn[name]) if total else None
        found[f"{name}_ci95"] = bounds
    return found
