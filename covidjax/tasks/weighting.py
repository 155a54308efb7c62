"""The weight of each class in the loss, from what the config says and the training labels or masks hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from covidjax.errors import UserError, some_of
from covidjax.losses import LossFunction, Weights


def class_weights(
    spec: str | Sequence[float] | Sequence[tuple[str, float]], labels: np.ndarray, classes: Sequence[str]
) -> Weights:
    """The weight of each class in the loss, from the training labels, or from masks, whose pixels are the examples.

    spec: 'none' (gives None), 'balanced' (examples / (classes * examples of the class), as scikit-learn has it, so that
    the mean weight over the examples is 1), one finite number, at least 0, per class in label order, or pairs of a
    class and its number, whatever the order of the labels; a class without a pair weighs 1.
    labels: [examples] or [images, height, width] int.
    Raises UserError for another spec, a wrong number of weights, an unknown class, or 'balanced' where a class has no
    example.
    """
    num_classes = len(classes)
    if isinstance(spec, str):
        if spec == "none":
            return None
        if spec != "balanced":
            raise UserError(
                f"loss.class_weights is {spec!r}; allowed: 'none', 'balanced', a tuple of {num_classes} numbers, "
                "or pairs of a class and its number; set it to one of these"
            )
        counts = class_counts(labels, num_classes)
        if not counts.all():
            example = "example" if np.ndim(labels) == 1 else "pixel"
            raise UserError(
                f"loss.class_weights is 'balanced', but class {classes[int(np.argmin(counts))]} has no training "
                f"{example}; every class needs one; add images or set 'none'"
            )
        return tuple(float(weight) for weight in counts.sum() / (num_classes * counts))
    weights = _in_label_order(spec, classes)
    if (
        len(weights) != num_classes
        or not all(math.isfinite(weight) and weight >= 0 for weight in weights)
        or not any(weights)
    ):
        raise UserError(
            f"loss.class_weights is {weights}; a tuple must hold {num_classes} finite numbers, at least 0, one per "
            f"class; give them in the order {some_of(classes)}"
        )
    return weights


def _in_label_order(spec: Sequence[Any], classes: Sequence[str]) -> tuple[float, ...]:
    """The numbers of a tuple, or of its pairs of a class and a number."""
    if not any(isinstance(part, tuple | list) for part in spec):
        return tuple(float(weight) for weight in spec)
    by_class: dict[str, float] = {part[0]: part[1] for part in spec if isinstance(part, tuple | list)}
    if len(by_class) < len(spec) or not by_class.keys() <= set(classes):
        raise UserError(
            f"loss.class_weights is {spec!r}; pairs must each name another class of {some_of(classes)}; "
            "give each its weight"
        )
    return tuple(float(by_class.get(name, 1.0)) for name in classes)


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of the classes: labels [examples] int, or masks [images, height, width] -> [num_classes] int64."""
    if np.ndim(labels) == 1:
        return np.bincount(np.asarray(labels), minlength=num_classes)
    parts = (np.bincount(np.ravel(mask), minlength=num_classes) for mask in labels)  # one by one: ids become int64
    return sum(parts, np.zeros(num_classes, np.int64))


def weight_notes(loss: LossFunction, classes: Sequence[str]) -> list[str]:
    """A note on the class weights that `loss_function` was given, with their classes; none where there are none."""
    weights = getattr(loss, "keywords", {}).get("class_weights")
    if weights is None:
        return []
    pairs = zip(classes, weights, strict=True)
    return ["class weights: " + some_of(f"{name} {weight:.4g}" for name, weight in pairs)]
