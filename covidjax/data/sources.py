"""A split of the data set that a config names."""

import dataclasses
from typing import Any, Literal

import numpy as np

from covidjax.data import folder, pairs, phantom
from covidjax.data.examples import Examples
from covidjax.errors import UserError

SPLITS = ("train", "val", "test")
Task = Literal["classification", "segmentation"]


def load(dataset: Any, split: str, task: Task = "classification") -> Examples:
    """One decoded split of `config.dataset`; no file of another split is opened.

    task: 'classification' (labels and classes are those of whole images) or 'segmentation' (masks hold class ids of
    pixels, classes are their names, labels are zeros).
    Raises UserError for an unknown split or source and for all that is wrong with the files.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: allowed are {', '.join(SPLITS)}")
    masks = task == "segmentation"
    if dataset.name == "phantom":
        examples = phantom.load(dataset, split)
        if masks:
            labels = np.zeros_like(examples.labels)
            examples = dataclasses.replace(examples, labels=labels, classes=phantom.MASK_CLASSES)
        return examples
    if dataset.name == "folder":
        return pairs.load(dataset, split) if masks else folder.load(dataset, split)
    raise UserError(f"config.dataset.name is {dataset.name!r}: allowed are phantom, folder")
