"""The page on a split whose pixels were labelled: the variables of templates/segmentation.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.data.examples import Examples
from covidjax.metrics import mask_files
from covidjax.tasks.pictures import ERRORS

MAX_WORST, MAX_OTHER = 6, 3


def segmentation_page(evaluation: Mapping[str, Any], workdir: Path, examples: Examples | None) -> dict[str, Any]:
    """{'dice': of the images, [n] float, 'missing', 'pairs', ...}.

    pairs: images with both masks by the choice they belong to, None without images; missing: the folder that lacks
    predicted masks, or nothing.
    """
    per_image: Sequence[Mapping[str, Any]] = evaluation["per_image"]
    page = {"dice": np.array([image["dice"] for image in per_image]), "missing": "", "pairs": None}
    if examples is None or examples.masks is None:
        return page
    position = {name: index for index, name in enumerate(examples.names)}
    folder = workdir / f"masks_{evaluation['split']}"
    paths = [folder / name for name in mask_files.mask_names(examples.names)]
    there = [image for image in per_image if image["file"] in position]
    pairs: dict[str, list[dict[str, Any]]] = {}
    for title, indices in choose(there).items():
        pairs[title] = []
        for image in (there[index] for index in indices):
            index = position[image["file"]]
            if not paths[index].is_file():
                return {**page, "missing": folder.name}
            masks = examples.masks[index], mask_files.read_mask(paths[index])
            pairs[title].append({**image, "image": examples.images[index], "masks": masks})
    return {**page, "pairs": pairs, "num_images": len(there), "classes": examples.classes, "errors": ERRORS}


def choose(per_image: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Indices of what is shown by Dice: the worst first, those about the median, and the best first. None is twice.

    Of images with the best Dice the ones with the most to find stand first.
    """

    def area(image: Mapping[str, Any]) -> int:
        return sum(scores["true_pixels"] for scores in image["per_class"].values())

    order = sorted(range(len(per_image)), key=lambda index: (per_image[index]["dice"], area(per_image[index])))
    num_best = min(MAX_OTHER, len(order) // 3)
    num_worst = min(MAX_WORST, len(order) - 2 * num_best, max(2, len(order) // 2))
    between = order[num_worst : len(order) - num_best]
    # The middle of all images, not of those that are left.
    first = max(0, min(len(order) // 2 - num_worst - num_best // 2, len(between) - num_best))
    return {"Worst": order[:num_worst], "Median": between[first : first + num_best], "Best": order[::-1][:num_best]}
