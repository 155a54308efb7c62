"""Random predictions and their report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from covidjax.data.examples import Examples
from covidjax.metrics import classification

CLASSES = ("normal", "pneumonia", "covid19")


def make_predictions(seed: int, count: int = 120, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in steps of 1/20, so that many tie, and labels that they tell something about."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, count).astype(np.int32)
    labels[:num_classes] = np.arange(num_classes)
    draws = generator.multinomial(20, np.eye(num_classes)[labels] * 0.3 + 0.7 / num_classes)
    return draws / 20, labels


def make_examples(labels: Any, classes: Sequence[str] = CLASSES, **changes: Any) -> Examples:
    """Examples with these labels and no pixels, each of a patient of its own."""
    names = tuple(f"{index}.png" for index in range(len(labels)))
    patients = tuple(f"patient{index}" for index in range(len(labels)))
    fields: dict[str, Any] = {"split": "test", "names": names, "patients": patients, "patients_known": True} | changes
    return Examples(
        images=np.zeros((len(labels), 0, 0, 1), np.uint8),
        labels=np.array(labels, np.int32),
        classes=tuple(classes),
        fingerprint="",
        **fields,
    )


def make_report(
    probabilities: np.ndarray, labels: np.ndarray, loss: Any = 0.5, seed: int = 0, resamples: int = 200, **changes: Any
) -> dict[str, Any]:
    examples = make_examples(labels, **{"classes": CLASSES[: probabilities.shape[1]]} | changes)
    return classification.classification_report(probabilities, examples, loss, seed=seed, resamples=resamples)


def mask_counts(predicted: np.ndarray, masks: np.ndarray, num_classes: int) -> np.ndarray:
    """`overlap_counts` of masks, by numpy: two [n, height, width] int -> [n, num_classes, 3] int64."""
    counts = np.empty((len(masks), num_classes, 3), np.int64)
    for index, (guess, true) in enumerate(zip(predicted, masks, strict=True)):
        matrix = classification.confusion_matrix(np.ravel(true), np.ravel(guess), num_classes)
        counts[index] = np.stack([matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)], -1)
    return counts
