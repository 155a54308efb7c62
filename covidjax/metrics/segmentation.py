"""Figures of predicted masks with their intervals, from three counts for each image and class.

The counts are made batch by batch where the logits are; all figures follow from them, and no prediction is kept.
Dice is 2 I / (P + T) and IoU is I / (P + T - I), with I the pixels of a class that prediction and mask share, P those
of the prediction and T those of the mask. A class that is in neither is a perfect answer: both figures are 1 then.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.metrics import bootstrap
from covidjax.metrics.classification import number

CONVENTIONS = {
    "dice and iou": "mean over images; a class that is in neither mask nor prediction counts as 1",
    "pooled": "from the pixels of all images together",
    "classes": "figures without a class are means over all classes but the first, the background",
    "hausdorff95": "the greater of the 95th percentiles of the distances from each border to the other, in pixels of "
    "the network's image; 0 where both masks are empty, undefined and left out where one is",
}


def overlap_counts(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Pixels of each class: shared, predicted, true. For use under jit, on a batch or a part of it.

    logits: [batch, height, width, classes]; labels: [batch, height, width] int -> [batch, classes, 3] int32.
    The prediction is the class of the greatest logit, the first of equal ones.
    """
    classes = jnp.arange(logits.shape[-1])
    predicted = jnp.argmax(logits, axis=-1)[..., None] == classes
    true = labels.astype(jnp.int32)[..., None] == classes
    return jnp.stack([jnp.sum(part, axis=(1, 2), dtype=jnp.int32) for part in (predicted & true, predicted, true)], -1)


def dice(counts: np.ndarray) -> np.ndarray:
    """[..., 3] counts -> [...] float64."""
    shared, predicted, true = np.moveaxis(counts, -1, 0)
    return _share(2 * shared, predicted + true)


def iou(counts: np.ndarray) -> np.ndarray:
    """[..., 3] counts -> [...] float64."""
    shared, predicted, true = np.moveaxis(counts, -1, 0)
    return _share(shared, predicted + true - shared)


def hausdorff95(predicted: np.ndarray, mask: np.ndarray) -> float:
    """How far the borders of two masks lie apart, in pixels, but for the worst 5 % (`CONVENTIONS`).

    predicted, mask: [height, width] bool. A border is what has one of its four neighbours, or the edge of the image,
    outside the mask. NaN where one of the two masks is empty.
    """
    if not predicted.any() or not mask.any():
        return 0.0 if predicted.any() == mask.any() else math.nan
    borders = [one & ~ndimage.binary_erosion(one) for one in (predicted, mask)]
    distances = [ndimage.distance_transform_edt(~border) for border in borders]
    return float(max(np.percentile(distances[1][borders[0]], 95), np.percentile(distances[0][borders[1]], 95)))


def hausdorff95_of(predicted: np.ndarray, masks: np.ndarray, num_classes: int) -> np.ndarray:
    """`hausdorff95` of each image and class: two [n, height, width] int -> [n, num_classes] float64."""
    pairs = zip(predicted, masks, strict=True)
    return np.array([[hausdorff95(guess == c, true == c) for c in range(num_classes)] for guess, true in pairs])


def report_from_counts(
    counts: np.ndarray,
    examples: Examples,
    loss: float,
    *,
    distances: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """The content of evaluation_<split>.json but for `checkpoint`, of Python numbers that are finite, or None.

    counts: [n, classes, 3] int, of `overlap_counts`; loss: mean over the images; distances: [n, classes] float of
    `hausdorff95_of`, if asked for. The first class is the background.

    Of each class and of all but the first together: Dice and IoU as means over the images, and pooled; and of each
    image, with the pixels of each class, which are its area. `CONVENTIONS`, which the report repeats, has the rest.

    Intervals, 95 %: percentiles of a bootstrap that draws whole patients or, where they are unknown, images. A single
    patient gives no interval, and a figure that is the same in all images one of width 0.

    Raises UserError where there are no images, or the loss is NaN: the network has diverged.
    """
    split, classes = examples.split, examples.classes
    if len(counts) == 0:
        raise UserError(f"split {split!r} has no images to evaluate: choose a split that has some")
    if math.isnan(loss):
        raise UserError(
            f"split {split!r}: the loss is not a number, the network has diverged: take an earlier checkpoint or "
            "train with a lower learning rate"
        )
    counts = counts.astype(np.int64)
    overlaps, unions, flat = dice(counts), iou(counts), counts.reshape(len(counts), -1).astype(np.float64)

    def resampled(weights: np.ndarray) -> dict[str, np.ndarray]:
        pooled, total = (weights @ flat).reshape(-1, *counts.shape[1:]), weights.sum(axis=1, keepdims=True)
        means = {"dice": weights @ overlaps / total, "iou": weights @ unions / total}
        return {**means, "dice_pooled": dice(pooled), "iou_pooled": iou(pooled)}

    pooled = counts.sum(axis=0)
    figures = {"dice": overlaps.mean(axis=0), "iou": unions.mean(axis=0)}
    figures |= {"dice_pooled": dice(pooled), "iou_pooled": iou(pooled)}
    clusters = bootstrap.clusters_of(examples)
    samples, count = bootstrap.resampled(resampled, clusters, seed, resamples), int(clusters.max()) + 1
    per_class = {}
    for c, name in enumerate(classes):
        per_class[name] = {
            **_with_intervals({key: (values[c], samples[key][:, c]) for key, values in figures.items()}, count),
            **({} if distances is None else _distance(distances[:, c])),
            "images_with": int(np.count_nonzero(counts[:, c, 2])),
            "true_pixels": int(counts[:, c, 2].sum()),
            "predicted_pixels": int(counts[:, c, 1].sum()),
        }
    means = {key: (values[1:].mean(), samples[key][:, 1:].mean(axis=1)) for key, values in figures.items()}
    return {
        "split": split,
        "num_examples": len(counts),
        "loss": number(loss),
        **_with_intervals(means, count),
        **({} if distances is None else _distance(distances[:, 1:])),
        "classes": list(classes),
        "per_class": per_class,
        "per_image": _per_image(counts, examples, distances),
        "conventions": {
            key: text for key, text in CONVENTIONS.items() if key != "hausdorff95" or distances is not None
        },
        "intervals": {"dice and iou": bootstrap.method(examples, resamples)},
        "research_use_only": True,
    }


def _per_image(counts: np.ndarray, examples: Examples, distances: np.ndarray | None) -> list[dict[str, Any]]:
    """Figures of each image, in the order given."""
    images = []
    for index, (name, patient) in enumerate(zip(examples.names, examples.patients, strict=True)):
        overlaps, unions = dice(counts[index]), iou(counts[index])
        of_classes: dict[str, dict[str, Any]] = {}
        for c, class_name in enumerate(examples.classes[1:], start=1):
            of_classes[class_name] = {
                "dice": float(overlaps[c]),
                "iou": float(unions[c]),
                "true_pixels": int(counts[index, c, 2]),
                "predicted_pixels": int(counts[index, c, 1]),
            }
            if distances is not None:
                of_classes[class_name]["hausdorff95"] = number(distances[index, c])
        means = {"dice": float(overlaps[1:].mean()), "iou": float(unions[1:].mean())}
        images.append({"file": name, "patient": patient, **means, "per_class": of_classes})
    return images


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The ratio; 1 where there is nothing to find and nothing was found."""
    return np.divide(part, whole, out=np.ones(np.shape(whole)), where=whole != 0)


def _with_intervals(figures: dict[str, tuple[float, np.ndarray]], count: int) -> dict[str, Any]:
    """Each figure and the interval of its samples, side by side."""
    report: dict[str, Any] = {}
    for key, (value, samples) in figures.items():
        report[key] = float(value)
        report[f"{key}_ci95"] = bootstrap.interval(samples, count)
    return report


def _distance(distances: np.ndarray) -> dict[str, Any]:
    defined = distances[np.isfinite(distances)]
    return {
        "hausdorff95": float(defined.mean()) if len(defined) else None,
        "hausdorff95_undefined": int(distances.size - len(defined)),
    }
