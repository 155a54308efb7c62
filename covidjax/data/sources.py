"""A split of the data set that a config names."""

import dataclasses
from typing import Any

import numpy as np

from covidjax.data import folder, phantom
from covidjax.data.decode import decode
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.extra import import_with_extra
from covidjax.data.listing import ImageFiles
from covidjax.data.order import oversampled
from covidjax.errors import UserError

NAMES = ("phantom", "folder", "tfds")  # of config.dataset.name


def load(dataset: Any, split: str, *, masks: bool = False) -> Examples:
    """One decoded split of `config.dataset`; no file of another split is opened, but for a fold of a prepared set.

    masks: whether classes are those of pixels, whose ids the masks hold, and labels are zeros; else labels and classes
    are those of whole images. Training images of classes in `dataset.oversample` count several times.
    Images and masks of files and records: see `covidjax.data.decode.decode`.
    Raises UserError for an unknown split, source or class, for all that is wrong with the files (of pairs: missing or
    ambiguous mask, other size, class id out of range, lossy JPEG) at once, for a class of a folder without a good
    training image, and for training masks that are all empty.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: allowed are {', '.join(SPLITS)}")
    if dataset.name == "phantom":
        examples = phantom.load(dataset, split)
        if masks:
            labels = np.zeros_like(examples.labels)
            examples = dataclasses.replace(examples, labels=labels, classes=phantom.MASK_CLASSES)
    else:
        examples = decode(listed(dataset, split, masks=masks), dataset)
        if masks:
            examples = _look_at_masks(examples, dataset.root)
        counts = np.bincount(examples.labels, minlength=len(examples.classes))
        if dataset.name == "folder" and split == "train" and not masks and not counts.all():
            missing = ", ".join(examples.classes[label] for label in np.flatnonzero(counts == 0))
            raise UserError(f"no good training image is left in class {missing}: mend its files")
    return oversampled(examples, dataset.oversample) if split == "train" else examples


def listed(dataset: Any, split: str, *, masks: bool = False) -> ImageFiles:
    """The images of one split of files or records, with labels and patients, before one is decoded.

    Raises UserError for an unknown source and for what is wrong with tables and layout.
    """
    if dataset.name == "folder":
        return folder.list_files(dataset, split, masks)
    if dataset.name == "tfds":  # whose import takes a second: other sources do not wait for it
        return import_with_extra("covidjax.data.prepared").list_files(dataset, split, masks)
    raise UserError(f"the classes of config.dataset.name {dataset.name!r} are not known without reading it")


def _look_at_masks(examples: Examples, root: str) -> Examples:
    """The split with notes on empty masks and unseen classes. Raises UserError where all training masks are empty."""
    masks, num_classes, split = np.asarray(examples.masks), len(examples.classes), examples.split
    counts = np.stack([np.bincount(mask.reshape(-1), minlength=num_classes) for mask in masks])
    notes, empty, unseen = list(examples.notes), int((counts[:, 1:].sum(axis=1) == 0).sum()), counts.sum(axis=0) == 0
    if empty == len(examples) and split == "train":
        raise UserError(f"all {empty} training masks below {root} are empty: there is nothing to learn")
    if empty:
        notes.append(f"{split}: {empty} of {len(examples)} masks are empty")
    if unseen[1:].any() and split == "train":
        names = ", ".join(examples.classes[index] for index in np.flatnonzero(unseen) if index)
        notes.append(f"no training mask has a pixel of {names}: what is not seen is not learnt")
    return dataclasses.replace(examples, notes=tuple(notes))
