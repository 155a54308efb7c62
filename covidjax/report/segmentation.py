"""The section of the report on one evaluated split of a network that answers with masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covidjax.data.examples import Examples
from covidjax.metrics.mask_files import mask_names
from covidjax.report import figures, page, pictures
from covidjax.report.classification import description
from covidjax.report.page import Html, element, join

SUMMARY = {
    "dice": "Dice, mean over images",
    "iou": "IoU, mean over images",
    "dice_pooled": "Dice, all pixels together",
    "iou_pooled": "IoU, all pixels together",
    "hausdorff95": "Hausdorff distance (95 %), pixels",
    "loss": "Loss",
}
PER_CLASS = {"dice": "Dice", "iou": "IoU", "dice_pooled": "Dice, pooled", "hausdorff95": "Hausdorff 95"}
AREAS = {"images_with": "Images with it", "true_pixels": "Pixels in masks", "predicted_pixels": "Predicted pixels"}
MAX_WORST, MAX_OTHER = 6, 3
PANEL_SIDE = 160  # least side of an enlarged image, so that borders stay thin


@dataclasses.dataclass(frozen=True)
class Choice:
    """Indices into `per_image` by Dice: the worst first, those about the median, and the best first. None is twice."""

    worst: tuple[int, ...]
    median: tuple[int, ...]
    best: tuple[int, ...]


def split_section(evaluation: Mapping[str, Any], masks_folder: Path, examples: Examples | None) -> list[Html]:
    """Figures with intervals, the distribution of Dice, a table of classes, and predictions beside the truth.

    masks_folder: of the predicted masks, see `segmentation_files`; examples: the split with its masks.
    """
    per_image: Sequence[Mapping[str, Any]] = evaluation["per_image"]
    histogram = figures.histogram(np.array([image["dice"] for image in per_image]), "Dice", "images")
    shown = page.image(histogram, "image/svg+xml", "How many images have which Dice", "plot")
    blocks = [
        element("div", element("h3", "Summary"), _summary(evaluation)),
        element("div", element("h3", "Dice of the images"), element("figure", shown), class_="histogram"),
    ]
    parts = [
        description(evaluation),
        element("div", *blocks, class_="row near"),
        element("h3", "Per class"),
        element("div", _per_class(evaluation), class_="wide"),
        element("ul", *(element("li", f"{key}: {text}") for key, text in evaluation.get("conventions", {}).items())),
    ]
    if examples is None or examples.masks is None:
        return [*parts, element("p", "This page was written without the images of this split.", class_="muted")]
    return [*parts, *_examples(per_image, masks_folder, examples)]


def choose(per_image: Sequence[Mapping[str, Any]]) -> Choice:
    """Which images are shown. Of those with the best Dice the ones with the most to find stand first."""

    def area(image: Mapping[str, Any]) -> int:
        return sum(scores["true_pixels"] for scores in image["per_class"].values())

    order = sorted(range(len(per_image)), key=lambda index: (per_image[index]["dice"], area(per_image[index])))
    num_best = min(MAX_OTHER, len(order) // 3)
    num_worst = min(MAX_WORST, len(order) - 2 * num_best, max(2, len(order) // 2))
    between = order[num_worst : len(order) - num_best]
    # The middle of all images, not of those that are left.
    first = max(0, min(len(order) // 2 - num_worst - num_best // 2, len(between) - num_best))
    return Choice(tuple(order[:num_worst]), tuple(between[first : first + num_best]), tuple(order[::-1][:num_best]))


def _summary(evaluation: Mapping[str, Any]) -> Html:
    rows = []
    for key, title in SUMMARY.items():
        if key in evaluation:
            bounds = page.interval(evaluation.get(f"{key}_ci95")) or ""
            rows.append((title, page.decimal(evaluation[key]), element("span", bounds, class_="interval")))
    return page.table(("", "", "95 % interval"), rows, "lrr")


def _per_class(evaluation: Mapping[str, Any]) -> Html:
    per_class: Mapping[str, Mapping[str, Any]] = evaluation["per_class"]
    known = [key for key in PER_CLASS if any(key in scores for scores in per_class.values())]
    rows = [
        (name, *(page.estimate(scores, key) for key in known), *(page.integer(scores.get(key)) for key in AREAS))
        for name, scores in per_class.items()
    ]
    header = ("Class", *(PER_CLASS[key] for key in known), *AREAS.values())
    return page.table(header, rows, "l" + "r" * (len(header) - 1))


def _examples(per_image: Sequence[Mapping[str, Any]], masks_folder: Path, examples: Examples) -> list[Html]:
    position = {name: index for index, name in enumerate(examples.names)}
    files = dict(zip(examples.names, mask_names(examples.names), strict=True))
    there = [image for image in per_image if image["file"] in position]
    predicted = {image["file"]: read_mask(masks_folder / files[image["file"]]) for image in _chosen(there)}
    if any(mask is None for mask in predicted.values()):
        again = f"Predicted masks are missing in {masks_folder.name}: run launch/evaluate.py again."
        return [element("p", again, class_="muted")]
    parts = [_legend(examples.classes)]
    choice = choose(there)
    for title, indices in (("Worst", choice.worst), ("Median", choice.median), ("Best", choice.best)):
        if not indices:
            continue
        cells = []
        for image in (there[index] for index in indices):
            mask = predicted[image["file"]]
            assert mask is not None and examples.masks is not None
            index = position[image["file"]]
            cells.append(_pair(image, examples.images[index], examples.masks[index], mask))
        heading = f"{title} by Dice ({len(indices)} of {len(there)})"
        parts += [element("h3", heading), element("div", *cells, class_="pairs")]
    return parts


def _chosen(per_image: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    choice = choose(per_image)
    return [per_image[index] for index in (*choice.worst, *choice.median, *choice.best)]


def read_mask(path: Path) -> np.ndarray | None:
    """[height, width] uint8 class ids, or None where there is no such file."""
    if not path.is_file():
        return None
    with Image.open(path) as mask:
        return np.asarray(mask)


def _legend(classes: Sequence[str]) -> Html:
    swatches = [
        element("span", element("i", style=f"background: {pictures.color(class_id)}"), name)
        for class_id, name in enumerate(classes[1:], start=1)
    ]
    explained = element("span", "Each pair: the mask on the left, the prediction on the right.")
    return element("p", explained, *swatches, class_="legend")


def _pair(image: Mapping[str, Any], pixels: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> Html:
    panels = (
        pictures.paint(pictures.enlarge(pixels, PANEL_SIDE), pictures.enlarge(mask, PANEL_SIDE))
        for mask in (true, predicted)
    )
    data, media_type = figures.picture(pictures.side_by_side(*panels), max_side=2 * figures.JPEG_MAX_SIDE)
    of_classes: Mapping[str, Mapping[str, Any]] = image["per_class"]
    scores = ", ".join(f"{name} {page.decimal(figures_['dice'])}" for name, figures_ in of_classes.items())
    caption = join(
        [
            element("b", f"Dice {page.decimal(image['dice'])}"),
            element("span", scores, class_="probability") if len(of_classes) > 1 else None,
            element("small", image["file"]),
        ]
    )
    alt = f"mask and prediction of {image['file']}, Dice {page.decimal(image['dice'])}"
    return element("figure", page.image(data, media_type, alt), element("figcaption", caption))
