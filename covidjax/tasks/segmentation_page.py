"""The page on a split whose pixels were labelled."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.data.examples import Examples
from covidjax.metrics import mask_files
from covidjax.tasks.page import (
    WITHOUT_IMAGES,
    Block,
    Column,
    Heading,
    Histogram,
    Items,
    Legend,
    Picture,
    Pictures,
    Row,
    Text,
    class_table,
    description,
    summary,
)

MAX_WORST, MAX_OTHER = 6, 3
SUMMARY = {
    "dice": "Dice, mean over images",
    "iou": "IoU, mean over images",
    "dice_pooled": "Dice, all pixels together",
    "iou_pooled": "IoU, all pixels together",
    "hausdorff95": "Hausdorff distance (95 %), pixels",
    "loss": "Loss",
}
PER_CLASS = (
    Column("Dice", "dice"),
    Column("IoU", "iou"),
    Column("Dice, pooled", "dice_pooled"),
    Column("Hausdorff 95", "hausdorff95"),
    Column("Images with it", "images_with", "integer"),
    Column("Pixels in masks", "true_pixels", "integer"),
    Column("Predicted pixels", "predicted_pixels", "integer"),
)


def segmentation_blocks(evaluation: Mapping[str, Any], workdir: Path, examples: Examples | None) -> list[Block]:
    """Figures with intervals, the distribution of Dice, a table of classes, and predictions beside the truth."""
    per_image: Sequence[Mapping[str, Any]] = evaluation["per_image"]
    dice = np.array([image["dice"] for image in per_image])
    distribution = Histogram(dice, "Dice", "images", "How many images have which Dice")
    scores = evaluation["per_class"].values()
    known = [column for column in PER_CLASS if any(column.key in of_class for of_class in scores)]
    blocks: list[Block] = [
        description(evaluation),
        Row(
            (
                (Heading("Summary"), summary(evaluation, SUMMARY)),
                (Heading("Dice of the images"), distribution),
            )
        ),
        Heading("Per class"),
        class_table(evaluation, known),
        Items(tuple(f"{key}: {text}" for key, text in evaluation.get("conventions", {}).items())),
    ]
    if examples is None or examples.masks is None:
        return [*blocks, Text(WITHOUT_IMAGES, muted=True)]
    return blocks + _pairs(per_image, workdir / f"masks_{evaluation['split']}", examples, examples.masks)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Indices into `per_image` by Dice: the worst first, those about the median, and the best first. None is twice."""

    worst: tuple[int, ...]
    median: tuple[int, ...]
    best: tuple[int, ...]


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


def _pairs(per_image: Sequence[Mapping[str, Any]], folder: Path, examples: Examples, true: np.ndarray) -> list[Block]:
    position = {name: index for index, name in enumerate(examples.names)}
    paths = [folder / name for name in mask_files.mask_names(examples.names)]
    there = [image for image in per_image if image["file"] in position]
    choice = choose(there)
    shown = [there[index] for index in (*choice.worst, *choice.median, *choice.best)]
    if not all(paths[position[image["file"]]].is_file() for image in shown):
        again = f"Predicted masks are missing in {folder.name}: run launch/evaluate.py again."
        return [Text(again, muted=True)]

    def pair(image: Mapping[str, Any]) -> Picture:
        index, dice = position[image["file"]], f"Dice {image['dice']:.3f}"
        scores = ", ".join(f"{name} {of_class['dice']:.3f}" for name, of_class in image["per_class"].items())
        several = ((scores, "probability"),) if len(image["per_class"]) > 1 else ()
        masks = true[index], mask_files.read_mask(paths[index])
        alt = f"mask and prediction of {image['file']}, {dice}"
        return Picture(examples.images[index], alt, ((dice, "strong"), *several, (image["file"], "small")), masks)

    blocks: list[Block] = [Legend("Each pair: the mask on the left, the prediction on the right.", examples.classes)]
    for title, indices in (("Worst", choice.worst), ("Median", choice.median), ("Best", choice.best)):
        if indices:
            heading = Heading(f"{title} by Dice ({len(indices)} of {len(there)})")
            blocks += [heading, Pictures([pair(there[index]) for index in indices])]
    return blocks
