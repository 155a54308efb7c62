"""Folders of images with a mask each, in one of three layouts; splits and patients in `root/splits.csv` if it is there.

1. `root/images/<name>.jpg` and `root/masks/<name>.png`
2. the same below `root/train`, `root/val` and `root/test`
3. `<name>.tif` beside `<name>_mask.tif`, in one folder for each patient (the LGG brain MRI set)

A mask may be called `<name>` or `<name>_mask` in all of them. In the third the folder names the patient.
"""

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from covidjax.data.decode import decode
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.listing import ImageFiles, Row, choose_split, some_of, table_rows, visible
from covidjax.data.picture import SUFFIXES
from covidjax.errors import UserError

COLUMNS = ("file", "patient", "split")
MASK = "_mask"
LAYOUT = (
    "expected layout: root/images/<name>.jpg and root/masks/<name>.png, or both below root/train|val|test, or "
    "<name>.tif beside <name>_mask.tif in one folder for each patient"
)


def load(dataset: ConfigDict, split: str) -> Examples:
    """One split with its masks. No image or mask of another split is opened.

    images: [n, image_size, image_size, channels] uint8; masks: [n, image_size, image_size] uint8, ids of `classes`;
    labels: zeros; classes: `dataset.mask_classes`. See `covidjax.data.decode.decode`.
    Reads `dataset.{root, fold, mask_classes}` and what `decode` reads. Raises UserError for a wrong layout or table,
    for bad files and pairs (missing or ambiguous mask, other size, class id out of range, lossy JPEG), all of them at
    once, and for training masks that are all empty.
    """
    return look_at_masks(decode(list_pairs(dataset, split), dataset), dataset.root)


def look_at_masks(examples: Examples, root: str) -> Examples:
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


def list_pairs(dataset: ConfigDict, split: str) -> ImageFiles:
    """The images of one split in the order of their names, with masks and patients; opens only splits.csv.

    splits.csv has the columns file, patient, split, with `file` below images/ or, in the third layout, below the root.
    Without a val split a fixed eighth of train is held out, by patient where patients are known; without any split all
    images are train. `dataset.fold` needs a column fold: see `covidjax.data.splits.assign_fold`.
    Raises UserError for a wrong layout or table.
    """
    root = Path(dataset.root).expanduser()
    rows, place, notes = _scan(root)
    table = root / "splits.csv"
    patients_known = table.exists() or all(row.patient for row in rows)
    if table.exists():
        rows = table_rows(table, (*COLUMNS, "fold") if dataset.fold != -1 else COLUMNS, place, rows)
    elif any(row.split for row in rows) and not all(row.split for row in rows):
        outside = some_of([row.name for row in rows if not row.split])
        raise UserError(f"{root} has split folders and images outside them: {outside}; move them, or add {table}")
    else:
        rows = [dataclasses.replace(row, split=row.split or "train") for row in rows]
    if not patients_known:
        notes.append("no patient ids: the split is image-level")
    missing = f"{root} has no {split} split: add {split} rows to {table}, or a folder {root / split}; {LAYOUT}"
    files = ImageFiles(root, tuple(rows), tuple(dataset.mask_classes), patients_known, tuple(notes))
    return choose_split(files, split, dataset.fold, table, missing)


def _scan(root: Path) -> tuple[list[Row], str, list[str]]:
    """All images with their masks, how a name in splits.csv becomes a path, and notes."""
    if not root.is_dir():
        raise UserError(f"{root} does not exist or is no folder; {LAYOUT}")
    parts = [split for split in SPLITS if (root / split / "images").is_dir()]
    if (root / "images").is_dir():
        folders, place = [("", "images", "masks", "")], "images/{file}"
    elif parts:
        folders, place = [(split, f"{split}/images", f"{split}/masks", "") for split in parts], "{split}/images/{file}"
    else:
        names = [path.relative_to(root).as_posix() for path in _folders(root)]
        folders, place = [(_split_of(name), name, name, _patient_of(name)) for name in names], "{file}"
    rows: list[Row] = []
    ignored: list[str] = []
    for split, images, masks, patient in folders:
        if not (root / masks).is_dir():
            raise UserError(f"{root / masks} does not exist; {LAYOUT}")
        found, others = _match(root, images, masks)
        rows += [dataclasses.replace(row, split=split, patient=patient) for row in found]
        ignored += others
    if not any(row.mask for row in rows):
        raise UserError(f"{root} has no image with a mask; {LAYOUT}")
    notes = []
    if ignored:
        notes.append(
            f"{len(ignored)} entries are no images, or masks without one, and were ignored: {some_of(ignored)}"
        )
    return rows, place, notes


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and all below it."""
    yield folder
    for path in visible(folder, LAYOUT):
        if path.is_dir():
            yield from _folders(path)


def _split_of(folder: str) -> str:
    first = Path(folder).parts[:1]
    return first[0] if first and first[0] in SPLITS else ""


def _patient_of(folder: str) -> str:
    return "" if folder in (".", *SPLITS) else Path(folder).name


def _match(root: Path, images: str, masks: str) -> tuple[list[Row], list[str]]:
    """The images of a folder with their masks, and the other files of the two folders, but for tables."""
    beside = images == masks
    of_images, of_masks = (_files(root / name) for name in (images, masks))
    candidates: dict[str, list[str]] = collections.defaultdict(list)
    for path in of_masks:
        if path.suffix.lower() in SUFFIXES and (not beside or path.stem.endswith(MASK)):
            candidates[path.stem].append(path.name)
    pictures = [path for path in of_images if path.suffix.lower() in SUFFIXES]
    if beside:
        pictures = [path for path in pictures if not path.stem.endswith(MASK)]
    twins = collections.Counter(path.stem for path in pictures)
    rows, used = [], set()
    for path in pictures:
        stems = (path.stem + MASK,) if beside else (path.stem, path.stem + MASK)
        own = [name for stem in stems for name in candidates[stem]]
        used.update(own)
        fault = ""
        if not own:
            fault = f"it has no mask {_join(masks, stems[0])}.png"
        elif len(own) > 1:
            fault = f"it has {len(own)} masks: {', '.join(own)}; keep one"
        elif twins[path.stem] > 1:
            fault = f"{twins[path.stem]} images have the name {path.stem}, and one mask"
        mask = _join(masks, own[0]) if not fault else ""
        rows.append(Row(_join(images, path.name), "", mask=mask, fault=fault))
    known = {path.name for path in pictures} | used if beside else {path.name for path in pictures}
    ignored = [_join(images, path.name) for path in of_images if path.name not in known and path.suffix != ".csv"]
    if not beside:
        ignored += [_join(masks, path.name) for path in of_masks if path.name not in used]
    return rows, ignored


def _files(folder: Path) -> list[Path]:
    return [path for path in visible(folder, LAYOUT) if not path.is_dir()]


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"
