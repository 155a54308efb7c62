"""A split of the data set that a config names."""

import dataclasses
from typing import Any

import numpy as np

from covidjax.data import folder, pairs, phantom
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.extra import import_with_extra
from covidjax.data.listing import ImageFiles
from covidjax.data.oversampling import oversampled
from covidjax.errors import UserError

NAMES = ("phantom", "folder", "tfds")  # of config.dataset.name


def load(dataset: Any, split: str, *, masks: bool = False) -> Examples:
    """One decoded split of `config.dataset`; no file of another split is opened.

    masks: whether classes are those of pixels, whose ids the masks hold, and labels are zeros; else labels and classes
    are those of whole images. Training images of classes in `dataset.oversample` count several times.
    Raises UserError for an unknown split, source or class and for all that is wrong with the files.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: allowed are {', '.join(SPLITS)}")
    examples = _load(dataset, split, masks=masks)
    return oversampled(examples, dataset.oversample) if split == "train" else examples


def _load(dataset: Any, split: str, *, masks: bool) -> Examples:
    if dataset.name == "phantom":
        examples = phantom.load(dataset, split)
        if masks:
            labels = np.zeros_like(examples.labels)
            examples = dataclasses.replace(examples, labels=labels, classes=phantom.MASK_CLASSES)
        return examples
    if dataset.name == "folder":
        return pairs.load(dataset, split) if masks else folder.load(dataset, split)
    return _prepared().load(dataset, split, masks=masks)


def listed(dataset: Any, split: str, *, masks: bool = False) -> ImageFiles:
    """The images of one split of files or records, with labels and patients, before one is decoded.

    Raises UserError for an unknown source and for what is wrong with tables and layout.
    """
    if dataset.name == "folder":
        return pairs.list_pairs(dataset, split) if masks else folder.list_files(dataset, split)
    if dataset.name == "tfds":
        return _prepared().list_records(dataset, split, masks)
    raise UserError(f"the classes of config.dataset.name {dataset.name!r} are not known without reading it")


def _prepared() -> Any:
    """The module that reads TFDS, whose import takes a second: other sources do not wait for it."""
    return import_with_extra("covidjax.data.prepared")
