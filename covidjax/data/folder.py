"""Folders of images, by class or with masks; patients, splits and folds in a table if it is there.

By class: `root/train|val|test/<class>/<image>`, also deeper, and `root/folds.csv`, or without split folders, see
`covidjax.data.flat`. With masks, and `root/splits.csv`:

1. `root/images/<name>.jpg` and `root/masks/<name>.png`, also in folders of the same names below both
2. the same below `root/train`, `root/val` and `root/test`
3. `<name>.tif` beside `<name>_mask.tif`, in one folder for each patient (the LGG brain MRI set)

A mask may be called `<name>` or `<name>_mask` in all of them. In the third the folder names the patient.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from covidjax.data import facts, flat, pairs
from covidjax.data.formats.read import SUFFIXES
from covidjax.data.listing import ImageFiles, Row, Scan, check_classes, choose_split, class_order
from covidjax.data.pairs import PAIR_LAYOUT
from covidjax.data.table import table_rows
from covidjax.data.walk import Walk, by_folder, masks_among, split_folders, walk
from covidjax.errors import UserError, some_of
from covidjax.process import path_of

CLASS_LAYOUT = (
    "expected layout: root/train|val|test/<class>/<image> or root/<class>/<image>, images ending in "
    f"{' '.join(SUFFIXES)}"
)


def list_files(dataset: ConfigDict, split: str, masks: bool, recorded: Path | None = None) -> ImageFiles:
    """The files of one split in the order of their names, with patients and classes or masks; opens only the table.

    Classes are the folder names of train in order (`class_order`) or, of masks, `dataset.mask_classes`. What is not
    read is noted. In splits.csv `file` is below images/ or, in the third layout, below the root; fold is needed for
    `dataset.fold` alone, and without the column patient the split is image-level. The choice of the split:
    `covidjax.data.listing.choose_split`; without any split all pairs are train. Without split folders of classes
    see `covidjax.data.flat.list_files`, also for `recorded`. Reads `dataset.{root, fold, split_seed, mask_classes}`.
    Where neither a table nor folders tell patients, the headers of DICOM files do, see `covidjax.data.facts`.
    Raises UserError for a wrong layout or table.
    """
    root = path_of(dataset.root)
    layout = PAIR_LAYOUT if masks else CLASS_LAYOUT
    if not root.is_dir():
        raise UserError(
            f"config.dataset.root is {str(dataset.root)!r}, and there is no folder {root.absolute()}: a relative one "
            f"begins where the command starts; {layout}"
        )
    found = walk(root, layout)
    splits, notes = split_folders(found)
    if not masks and (flat.is_flat(found) or (recorded is not None and recorded.exists())):
        return flat.list_files(found, split, dataset.fold, dataset.split_seed, recorded)
    table: Path
    columns: tuple[str, ...]
    if masks:
        scan = pairs.scan(found, splits, joined=len(dataset.mask_classes) == 2)
        table, columns = root / "splits.csv", ("file", "split", "fold") if dataset.fold != -1 else ("file", "split")
        missing = f"{root} has no {split} split: add {split} rows to {table}, or a folder {root / split}; {PAIR_LAYOUT}"
    else:
        scan = _scan_classes(found, splits)
        table, columns = root / "folds.csv", ("file", "label", "split", "fold")
        missing = f"{root / split} does not exist; {CLASS_LAYOUT}"
    rows, known = list(scan.rows), all(row.patient for row in scan.rows)
    notes += scan.notes
    by_patient = ""
    if table.exists():
        rows, known = table_rows(table, columns, scan.places, rows)
    elif any(row.split for row in rows) and not all(row.split for row in rows):
        outside = [row.name for row in rows if not row.split]
        if "train" in splits:
            raise UserError(
                f"{root} has split folders and images outside them: {some_of(outside)}; move them, or add {table}"
            )
        notes.append(f"there is no train folder: the images outside split folders are train: {by_folder(outside)}")
    elif known and masks:
        patients = class_order(row.patient for row in rows)
        by_patient = f"each folder is taken for a patient, {len(patients)}: {some_of(patients)}"
    rows, known, told = facts.added(rows, known, root, found.paths)
    notes += told
    rows = [dataclasses.replace(row, split=row.split or "train") for row in rows]
    if not known:
        notes.append("no patient ids: the split is image-level")
    classes = tuple(dataset.mask_classes) if masks else class_order(row.label for row in rows)
    if not masks:
        check_classes(classes, root)
    notes += [by_patient] * bool(by_patient) + list(found.notes)
    files = ImageFiles(root, tuple(rows), classes, known, tuple(notes), paths=found.paths)
    advice = f"; {by_patient}: if they are none, write {table} with the columns file, split"
    try:
        chosen = choose_split(files, split, dataset.fold, table, missing)
    except UserError as error:
        if not by_patient:
            raise
        raise UserError(f"{error}{advice}") from error
    return dataclasses.replace(chosen, torn=f"{chosen.torn}{advice}") if chosen.torn and by_patient else chosen


def _scan_classes(found: Walk, splits: dict[str, str]) -> Scan:
    """The images of all splits, split by split and class by class."""
    root = found.root
    if "train" not in splits:
        there = f"images found: {by_folder(found.images) or 'none'}"
        told = [f"{root / 'train'} does not exist or is no folder", flat.hint(found), there, CLASS_LAYOUT]
        raise UserError("; ".join(filter(None, told)))
    split_of = {folder: split for split, folder in splits.items()}
    if twice := [name for name in found.not_entered if name.count("/") == 1 and name.split("/")[0] in split_of]:
        raise UserError(f"{root}: {some_of(twice)}: links to folders that are read already; a class needs its own")
    images: dict[tuple[str, ...], list[str]] = {
        (folder, label): []
        for folder, label, *deeper in (name.split("/") for name in found.folders if "/" in name)
        if folder in split_of and not deeper
    }
    outside: list[str] = []
    for name in found.images:
        folder, _, rest = name.partition("/")
        own = images.get((folder, rest.partition("/")[0])) if "/" in rest else None
        (outside if own is None else own).append(name)
    labels = {split: [label for own, label in images if own == folder] for split, folder in splits.items()}
    train = labels["train"]
    if not train:
        raise UserError(f"{root / splits['train']} has no class folders; {CLASS_LAYOUT}")
    if set(map(str.lower, train)) in ({"images", "masks"}, {"image", "mask"}):
        raise UserError(
            f"{root / splits['train']} holds images and their masks, which are no classes: choose a network for "
            "segmentation, such as config.model.name='unet'"
        )
    masks, rows = _rows(root, splits, labels, images)
    ignored = [name for name in found.others if name.split("/")[0] in split_of]
    notes = []
    if ignored:
        notes.append(f"{len(ignored)} entries are no images by their ending and were ignored: {some_of(ignored)}")
    if outside:
        notes.append(
            f"{len(outside)} images in no class folder of train, val or test are not read: {by_folder(outside)}"
        )
    if masks:
        notes.append(f"{len(masks)} files are masks of images, and were left out: {some_of(sorted(masks))}")

    def places(record: Mapping[str, str]) -> list[str]:
        return [f"{splits.get(record['split'], record['split'])}/{record['label']}/{record['file']}"]

    return Scan(rows, places, notes)


def _rows(
    root: Path, splits: dict[str, str], labels: dict[str, list[str]], images: dict[tuple[str, ...], list[str]]
) -> tuple[set[str], list[Row]]:
    """The masks among the images of the class folders, and rows of all others.

    Raises UserError for a class folder without images, and for one that train lacks.
    """
    masks = {
        f"{folder}/{label}/{name}"
        for (folder, label), names in images.items()
        for name in masks_among([name.removeprefix(f"{folder}/{label}/") for name in names])
    }
    rows, empty = [], []
    for split, folder in splits.items():
        for label in labels[split]:
            own = [name for name in images[folder, label] if name not in masks]
            rows += [Row(name, split, label) for name in own]
            empty += [] if own else [str(root / folder / label)]
    if empty:
        raise UserError(f"class folders without images: {some_of(empty)}; fill or remove them; {CLASS_LAYOUT}")
    for split, own in labels.items():
        if unknown := set(own) - set(labels["train"]):
            raise UserError(
                f"{root / splits[split]} has classes that train lacks: {some_of(sorted(unknown))}; "
                f"allowed: {some_of(labels['train'])}"
            )
    return masks, rows
