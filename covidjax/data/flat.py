"""Folders of classes without split folders: the split is that of a table, the recorded one of a run, or drawn.

`root/<class>/<image>`, also deeper, and `root/folds.csv` (file, label and, where known, patient, split, fold).
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from covidjax.data import facts
from covidjax.data.examples import SPLITS
from covidjax.data.listing import ImageFiles, Row, Scan, check_classes, choose_split, class_order
from covidjax.data.splits import NUM_FOLDS, assign_fold, draw_folds, draw_splits
from covidjax.data.table import read_records, table_rows
from covidjax.data.walk import IMAGE_FOLDER, MASK_FOLDER, SPELLINGS, Walk, by_folder, masks_among
from covidjax.errors import UserError, some_of

RECORDED = "splits.csv"  # of a workdir
COLUMNS = ("file", "label", "patient", "split")  # of that table
NEEDED, OPTIONAL = ("file", "label"), ("patient", "split", "fold")


def is_flat(found: Walk) -> bool:
    """Whether the folders with images are classes: none below the root is a split's, nor are they images and masks."""
    classes = _holders(found)
    return bool(classes) and not _split_folders(found) and not _with_masks(classes) and not _wrapped(found, classes)


def hint(found: Walk) -> str:
    """What helps where there is neither a train folder nor a flat folder of classes; '' where nothing is known to."""
    root, classes = found.root, _holders(found)
    if folders := _split_folders(found):
        if len(folders) == 1 and SPELLINGS["train"].fullmatch(folders[0].rpartition("/")[2]):
            return f"but {root / folders[0]} does: name the folder that it is in"
        deeper = [name for name in folders if "/" in name]
        return f"{some_of(deeper)} are called like splits, which stand above the classes" if deeper else ""
    if _with_masks(classes):
        return (
            "there are images and their masks, which are no classes: choose a network for segmentation, such as "
            "config.model.name='unet'"
        )
    if _wrapped(found, classes):
        return f"if the folders in it are the classes, name {root / classes[0]}"
    if found.images:
        return (
            "sort the images into a folder for each class, or name their classes in a table and use "
            "launch/prepare.py --dataset=csv"
        )
    return ""


def list_files(found: Walk, split: str, fold: int, seed: int, recorded: Path | None) -> ImageFiles:
    """The files of one split; classes are the upper folders that hold images. Opens tables, and headers of DICOM files.

    recorded: where a run has kept the split that was drawn, None for a new one. If the file is there the split is that,
    whatever came since, which is noted. Else it is that of the column split, or of fold, of folds.csv, or drawn:
    by patient where known, with the classes in proportion, see `covidjax.data.splits.draw_splits`; of folds of
    `draw_folds` for a fold that is not -1. `ImageFiles.drawn` then holds the rows of `COLUMNS`.
    Raises UserError for a wrong table, images of the recorded split that are gone, and too few images for a draw.
    """
    root, table = found.root, found.root / "folds.csv"
    if recorded is not None and recorded.exists():
        return _as_recorded(found, split, fold, seed, recorded)
    listed = list_all(found)
    rows, known, notes = listed.rows, listed.patients_known, listed.notes
    files = _files(found, rows, known, notes)
    if rows[0].split if fold == -1 else rows[0].fold != -1:
        return choose_split(files, split, fold, table, f"{table} has no row of the {split} split: add some")
    if recorded is not None:
        raise UserError(
            f"{recorded}, which holds the split that this run drew, is missing: put it back, or train anew in another "
            "--workdir"
        )
    splits = _drawn(root, files, fold, seed)
    rows = tuple(dataclasses.replace(row, split=own) for row, own in zip(rows, splits, strict=True))
    drawn = tuple((row.name.removeprefix(f"{row.label}/"), row.label, row.patient, row.split) for row in rows)
    files = _files(found, rows, known, (*notes, _draw_note(rows, files, fold, seed)))
    return choose_split(dataclasses.replace(files, drawn=drawn), split, -1, table, "")


def list_all(found: Walk) -> ImageFiles:
    """The files of all classes with what folds.csv and DICOM headers say of them, whatever their split; no classes."""
    scan, table = _scan(found), found.root / "folds.csv"
    rows, known = list(scan.rows), False
    if table.exists():
        rows, known = table_rows(table, NEEDED, scan.places, rows, OPTIONAL)
    rows, known, told = facts.added(rows, known, found.root, found.paths)
    return ImageFiles(found.root, tuple(rows), (), known, (*scan.notes, *told), paths=dict(found.paths))


def _holders(found: Walk) -> list[str]:
    """The upper folders that hold images, also deeper."""
    return list(dict.fromkeys(name.partition("/")[0] for name in found.images if "/" in name))


def _split_folders(found: Walk) -> list[str]:
    """The folders, at any depth, that are called train or, where none is, like another split."""
    for spelling in SPELLINGS.values():
        if named := [name for name in found.folders if spelling.fullmatch(name.rpartition("/")[2])]:
            return named
    return []


def _with_masks(classes: Sequence[str]) -> bool:
    return any(map(MASK_FOLDER.fullmatch, classes)) and any(map(IMAGE_FOLDER.fullmatch, classes))


def _wrapped(found: Walk, classes: Sequence[str]) -> bool:
    """Whether all is in one folder, which holds images in folders only."""
    return len(classes) == 1 and all(name.count("/") > 1 for name in found.images)


def _scan(found: Walk) -> Scan:
    """The images of all classes, without their masks; and what is not read."""
    images: dict[str, list[str]] = {label: [] for label in _holders(found)}
    for name in found.images:
        if "/" in name:
            images[name.partition("/")[0]].append(name)
    masks = _masks(images)
    rows = [Row(name, "", label) for label, names in images.items() for name in names if name not in masks]
    loose = [name for name in found.images if "/" not in name]
    ignored = [name for name in found.others if name.partition("/")[0] in images]
    empty = [name for name in found.folders if name and "/" not in name and name not in images]
    if bare := sorted(images.keys() - {row.label for row in rows}):
        raise UserError(f"{found.root} has folders that hold masks only: {some_of(bare)}; move them away")
    if linked := [name for name in found.not_entered if "/" not in name]:
        raise UserError(
            f"{found.root}: {some_of(linked)}: links to folders that are read already; a class needs its own"
        )
    notes = [
        f"{len(names)} {words}"
        for names, words in (
            (ignored, f"entries are no images by their ending and were ignored: {some_of(ignored)}"),
            (loose, f"images in no class folder are not read: {by_folder(loose)}"),
            (masks, f"files are masks of images, and were left out: {some_of(sorted(masks))}"),
            (empty, f"folders without images are no classes: {some_of(empty)}"),
        )
        if names
    ]

    def places(record: Mapping[str, str]) -> list[str]:
        return [f"{record['label']}/{record['file']}", record["file"]]

    return Scan(rows, places, notes)


def _masks(images: Mapping[str, Sequence[str]]) -> set[str]:
    return {
        f"{label}/{name}"
        for label, names in images.items()
        for name in masks_among([name.removeprefix(f"{label}/") for name in names])
    }


def _files(found: Walk, rows: Sequence[Row], known: bool, notes: Sequence[str]) -> ImageFiles:
    classes = class_order(row.label for row in rows)
    check_classes(classes, found.root)
    unknown = () if known else ("no patient ids: the split is image-level",)
    return ImageFiles(
        found.root, tuple(rows), classes, known, (*notes, *unknown, *found.notes), paths=dict(found.paths)
    )


def _drawn(root: Path, files: ImageFiles, fold: int, seed: int) -> tuple[str, ...]:
    """The split of every image. Raises UserError where a class would be missing from train or test."""
    if not -1 <= fold < NUM_FOLDS:
        raise UserError(f"dataset.fold is {fold}; allowed: 0 to {NUM_FOLDS - 1}, of folds that are drawn, or -1")
    way = f"add some, or write the split yourself: a column split in {root / 'folds.csv'}, or folders train, val, test"
    unit = "patients" if files.patients_known else "images"
    try:
        splits = _draw(files.labels, files.patients, fold, seed)
    except UserError as error:
        raise UserError(f"{root}: {str(error).replace('patients', unit)}; {way}") from error
    there = {(row.label, own) for row, own in zip(files.rows, splits, strict=True)}
    groups = set(zip((row.label for row in files.rows), files.patients, strict=True))
    counts = collections.Counter(label for label, _ in groups)
    if few := [name for name in files.classes if not {(name, "train"), (name, "test")} <= there]:
        told = some_of(f"{name} ({counts[name]} {unit})" for name in few)
        raise UserError(f"{root} has too few {unit} to draw train and test of class {told}: {way}")
    return splits


@functools.lru_cache(maxsize=2)  # the splits of a run are listed one after the other
def _draw(labels: tuple[int, ...], patients: tuple[str, ...], fold: int, seed: int) -> tuple[str, ...]:
    if fold == -1:
        return draw_splits(labels, patients, seed)
    return assign_fold(draw_folds(labels, patients, seed=seed), fold, labels, patients, seed)


def _draw_note(rows: Sequence[Row], files: ImageFiles, fold: int, seed: int) -> str:
    counts = collections.Counter(row.split for row in rows)
    told = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    unit = "patient" if files.patients_known else "image"
    number = "" if fold == -1 else f", fold {fold}"
    return (
        f"the folders are the classes ({some_of(files.classes)}), and the split is drawn by {unit} with "
        f"dataset.split_seed={seed}{number}: {told} images"
    )


def _as_recorded(found: Walk, split: str, fold: int, seed: int, recorded: Path) -> ImageFiles:
    """The split that a run has kept."""
    records = read_records(recorded, (*NEEDED, "split"), ("patient",))
    as_told = {"/".join(part.strip() for part in name.split("/", 1)): name for name in found.images}
    rows = []
    for own in records:
        told = f"{own['label']}/{own['file']}"
        name = as_told.get(told, told)
        rows.append(Row(name, own["split"], name.partition("/")[0], own.get("patient", "")))
    if not rows:
        raise UserError(f"{recorded} has no rows: put the former one back, or train anew elsewhere")
    there, used = set(found.images), {row.name for row in rows}
    if gone := sorted(row.name for row in rows if row.split == split and row.name not in there):
        raise UserError(
            f"{len(gone)} {split} images of {recorded} are gone from {found.root}: {some_of(gone)}; put them back, or "
            "train anew in another --workdir"
        )
    images: dict[str, list[str]] = collections.defaultdict(list)
    for name in found.images:
        if "/" in name:
            images[name.partition("/")[0]].append(name)
    new = sorted({name for own in images.values() for name in own} - used - _masks(images))
    with_facts, *_ = facts.added(rows, True, found.root, found.paths)
    files = _files(found, with_facts, any(row.patient for row in rows), ())
    notes = [_draw_note(rows, files, fold, seed)]
    if new:
        notes.append(f"{len(new)} images are new since the split was drawn, and are not used: {some_of(new)}")
    return choose_split(dataclasses.replace(files, notes=(*files.notes, *notes)), split, -1, recorded, "")
