"""Random predictions and their report."""

from typing import Any

import numpy as np

from covidjax.metrics import classification

CLASSES = ("normal", "pneumonia", "covid19")


def make_predictions(seed: int, count: int = 120, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in steps of 1/20, so that many tie, and labels that they tell something about."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, count).astype(np.int32)
    labels[:num_classes] = np.arange(num_classes)
    draws = generator.multinomial(20, np.eye(num_classes)[labels] * 0.3 + 0.7 / num_classes)
    return draws / 20, labels


def make_report(probabilities: np.ndarray, labels: np.ndarray, **options: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "patients": tuple(f"patient{index}" for index in range(len(labels))),
        "patients_known": True,
        "classes": CLASSES[: probabilities.shape[1]],
        "loss": 0.5,
        "split": "test",
        "resamples": 200,
    }
    return classification.classification_report(probabilities, labels, **(arguments | options))


def mask_counts(predicted: np.ndarray, masks: np.ndarray, num_classes: int) -> np.ndarray:
    """`overlap_counts` of masks, by numpy: two [n, height, width] int -> [n, num_classes, 3] int64."""
    counts = np.empty((len(masks), num_classes, 3), np.int64)
    for index, (guess, true) in enumerate(zip(predicted, masks, strict=True)):
        matrix = classification.confusion_matrix(np.ravel(true), np.ravel(guess), num_classes)
        counts[index] = np.stack([matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)], -1)
    return counts
