"""The weight of each class in the loss, from what the config says and the training labels or masks hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from covidjax.errors import UserError, some_of
from covidjax.losses import LossFunction, Weights

OVERLAP = 0.999  # of the effective number of examples: beyond some thousands of a class further ones tell little


def class_weights(
    spec: str | Sequence[float] | Sequence[tuple[str, float]], labels: np.ndarray, classes: Sequence[str]
) -> Weights:
    """The weight of each class in the loss, from the training labels, or from masks, whose pixels are the examples.

    spec: 'none' (gives None), 'balanced' (examples / (classes * examples of the class), as scikit-learn has it, so that
    the mean weight over the examples is 1), 'effective' (the same of `effective_number`), one finite number, at least
    0, per class in label order, or pairs of a class and its number, whatever the order of the labels; a class without a
    pair weighs 1.
    labels: [examples] or [images, height, width] int.
    Raises UserError for another spec, a wrong number of weights, an unknown class, or one by counts where a class has
    no example.
    """
    num_classes = len(classes)
    if isinstance(spec, str):
        if spec == "none":
            return None
        _check_spec(spec, num_classes)
        counts = class_counts(labels, num_classes)
        if not counts.all():
            example = "example" if np.ndim(labels) == 1 else "pixel"
            raise UserError(
                f"loss.class_weights is {spec!r}, but class {classes[int(np.argmin(counts))]} has no training "
                f"{example}; every class needs one; add images or set 'none'"
            )
        numbers = counts if spec == "balanced" else effective_number(counts)
        weights = counts.sum() / (numbers * (counts / numbers).sum())
        return tuple(float(weight) for weight in weights)
    return _given(spec, classes)


def finding_weights(
    spec: str | Sequence[float] | Sequence[tuple[str, float]], findings: np.ndarray, names: Sequence[str]
) -> Weights:
    """The weight of the present label of each finding; that of the absent one is 1.

    spec: as of `class_weights`: 'balanced' is the number of absent labels to that of present ones, and 'effective' the
    same of their `effective_number`; a finding that has neither, or one of them alone, weighs 1.
    findings: [n, findings] int, as `Examples.findings` has them.
    Raises UserError for another spec, a wrong number of weights and an unknown finding.
    """
    if not isinstance(spec, str):
        return _given(spec, names)
    if spec == "none":
        return None
    _check_spec(spec, len(names))
    counts = np.stack([(findings == 0).sum(axis=0), (findings == 1).sum(axis=0)])
    absent, present = counts if spec == "balanced" else effective_number(counts)
    ratios = np.divide(absent, present, out=np.ones(len(names)), where=(counts > 0).all(axis=0))
    return tuple(float(weight) for weight in ratios)


def effective_number(counts: np.ndarray) -> np.ndarray:
    """(1 - b^n) / (1 - b) for n examples, with b = `OVERLAP` (Cui et al. 2019, arXiv 1901.05555, eq. 2): float64."""
    return (1 - OVERLAP ** counts.astype(np.float64)) / (1 - OVERLAP)


def _check_spec(spec: str, num_classes: int) -> None:
    if spec not in ("balanced", "effective"):
        raise UserError(
            f"loss.class_weights is {spec!r}; allowed: 'none', 'balanced', 'effective', a tuple of {num_classes} "
            "numbers, or pairs of a class and its number; set it to one of these"
        )


def _given(spec: Sequence[float] | Sequence[tuple[str, float]], classes: Sequence[str]) -> Weights:
    num_classes, weights = len(classes), _in_label_order(spec, classes)
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
