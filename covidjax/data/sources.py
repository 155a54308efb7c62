"""A split of the data set that a config names."""

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.console import Progress
from covidjax.data import folder, phantom, phantom_findings
from covidjax.data.copies import Seen, copies, seen
from covidjax.data.decode import decode, in_parallel
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.extra import import_with_extra
from covidjax.data.findings import settled
from covidjax.data.listing import ImageFiles, check_classes
from covidjax.data.order import oversampled
from covidjax.data.splits import NUM_FOLDS, draw_images
from covidjax.errors import UserError, some_of

DRAWN = ("phantom", "phantom_findings")
NAMES = (*DRAWN, "folder", "tfds")  # of config.dataset.name


def load(dataset: Any, split: str, *, masks: bool = False, recorded: Path | None = None) -> Examples:
    """One decoded split of `config.dataset`; no file of another split is opened, but for a fold of a prepared set.

    masks: whether classes are those of pixels, whose ids the masks hold, and labels are zeros; else labels and classes
    are those of whole images. Training images of classes in `dataset.oversample` count several times. Of findings the
    uncertain labels of training images become what `dataset.uncertain` says; those of other splits stay uncertain.
    recorded: where a run has kept the split that it drew, see `covidjax.data.flat.list_files`.
    Images and masks of files and records: see `covidjax.data.decode.decode`.
    Raises UserError for an unknown split, source or class, for all that is wrong with the files (of pairs: missing or
    ambiguous mask, other size, class id out of range, lossy JPEG) at once, for a class of a folder without a good
    training image, and for training masks that are all empty.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: allowed are {', '.join(SPLITS)}")
    if dataset.name == "phantom_findings":
        examples = phantom_findings.load(dataset, split)
    elif dataset.name == "phantom":
        examples = phantom.load(dataset, split)
        if masks:
            labels = np.zeros_like(examples.labels)
            examples = dataclasses.replace(examples, labels=labels, classes=phantom.MASK_CLASSES)
    else:
        examples = decode(listed(dataset, split, masks=masks, recorded=recorded), dataset)
        if masks:
            examples = _look_at_masks(examples, dataset.root)
        counts = np.bincount(examples.labels, minlength=len(examples.classes))
        if split == "train" and not masks and examples.findings is None and not counts.all():
            missing = some_of(examples.classes[label] for label in np.flatnonzero(counts == 0))
            mend = "raise config.dataset.subset" if dataset.subset else "mend its files"
            raise UserError(f"no good training image is left in class {missing}: {mend}")
    if split == "train" and examples.findings is not None:
        findings = settled(examples.findings, examples.classes, dataset.uncertain)
        examples = dataclasses.replace(examples, findings=findings)
    return oversampled(examples, dataset.oversample) if split == "train" else examples


def listed(
    dataset: Any, split: str, *, masks: bool = False, recorded: Path | None = None, torn: bool = False
) -> ImageFiles:
    """The images of one split of files or records, with labels and patients, before one is decoded.

    Of the training images `dataset.subset` are drawn, with `dataset.split_seed`, and so told.
    torn: whether patients may be in several splits, as for an audit, which tells of them.
    Raises UserError for an unknown source and for what is wrong with tables and layout.
    """
    files = _listed(dataset, split, masks=masks, recorded=recorded)
    if files.torn and not torn:
        raise UserError(files.torn)
    if not dataset.subset or split != "train":
        return files
    chosen = draw_images(files.patients, dataset.subset, dataset.split_seed)
    subset = dataclasses.replace(files, rows=tuple(files.rows[number] for number in chosen))
    whole = f"of {len(set(subset.patients))} of {len(set(files.patients))} patients" if files.patients_known else ""
    told = f"{len(chosen)} of {len(files.rows)} images were drawn {whole}".rstrip()
    note = f"train: {told} (dataset.subset, with dataset.split_seed {dataset.split_seed})"
    return dataclasses.replace(subset, notes=(*files.notes, note))


def _listed(dataset: Any, split: str, *, masks: bool, recorded: Path | None) -> ImageFiles:
    if dataset.name == "folder":
        return folder.list_files(dataset, split, masks, recorded)
    if dataset.name == "tfds":  # whose import takes a second: other sources do not wait for it
        files: ImageFiles = import_with_extra("covidjax.data.prepared").list_files(dataset, split, masks)
        if files.one_class:
            check_classes(files.classes, dataset.root)
        return files
    raise UserError(f"the classes of config.dataset.name {dataset.name!r} are not known without reading it")


def folds(dataset: Any, *, masks: bool = False) -> tuple[int, ...]:
    """The folds of a data set: those that it has or, of a folder of classes without any, those that are drawn.

    No image is opened. Raises UserError where it has none.
    """
    if dataset.name == "phantom":
        raise UserError("config.dataset.name is 'phantom', which has no folds: choose a folder or a prepared set")
    found: set[int] = set()
    for split in SPLITS:
        with contextlib.suppress(UserError):  # the set may have no such split: folds take its place
            found |= {row.fold for row in listed(_with_fold(dataset, -1), split, masks=masks, torn=True).rows}
    if found := found - {-1}:
        return tuple(sorted(found))
    listed(_with_fold(dataset, 0), "train", masks=masks)
    return tuple(range(NUM_FOLDS))


def _with_fold(dataset: Any, fold: int) -> Any:
    own = dataset.copy_and_resolve_references()
    with own.unlocked():
        own.fold, own.subset = fold, 0
    return own


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


def copies_elsewhere(
    dataset: Any, examples: Examples, recorded: Path | None = None, own_files: ImageFiles | None = None
) -> list[str]:
    """Notes on images of a split that are in others too. The test split is read for itself only.

    Of the other splits the files of a size that an image of this one has are read. own_files: those of the examples
    where these are no split of the data set.
    """
    own = seen(examples)
    if not own or dataset.name != "folder":
        return []
    masks = examples.masks is not None
    try:
        others = {
            split: listed(dataset, split, masks=masks, recorded=recorded)
            for split in SPLITS
            if split == examples.split or split != "test"
        }
    except UserError as error:
        return [f"copies in other splits were not looked for: {error}"]
    this = own_files or others.pop(examples.split)
    names = set(examples.names)
    sizes = {_size(this, name) for name in this.names if name in names}
    digests = {one.digest for one in own}
    found = list(own)
    for split, files in others.items():
        rows = [row for row in files.rows if _size(files, row.name) in sizes]

        def digest(index: int, files: ImageFiles = files, rows: list = rows) -> str:
            try:
                return hashlib.sha256(files.read(rows[index].name)).hexdigest()
            except OSError:
                return ""

        progress = Progress(f"{split}: looking for copies", len(rows), patience=5)
        for row, value in zip(rows, in_parallel(digest, len(rows), progress), strict=True):
            if value in digests:
                found.append(Seen(value, row.name, split, row.label))
    return copies(found)


def _size(files: ImageFiles, name: str) -> int:
    try:
        return os.stat(files.root / files.paths.get(name, name)).st_size
    except OSError:
        return -1
