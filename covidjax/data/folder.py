"""Folders of images: `root/train|val|test/<class>/<image>`, with the patients in `root/folds.csv` if it is there."""

import collections
import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from covidjax.data.decode import ImageFiles, decode
from covidjax.data.examples import Examples
from covidjax.data.splits import assign_fold, check_patients_in_one_split, hold_out_eighth
from covidjax.errors import UserError

SPLITS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
COLUMNS = ("file", "label", "patient", "split", "fold")
LAYOUT = "expected layout: root/train|val|test/<class>/<image>, images ending in .jpg .jpeg .png .bmp"


@dataclasses.dataclass(frozen=True)
class _Row:
    """One image: its path below the root, its folder's split, and what folds.csv says of it."""

    name: str
    label: str
    split: str
    patient: str = ""
    fold: int = -1


def load(dataset: ConfigDict, split: str) -> Examples:
    """Load one split. No image file of another split is opened.

    images: [n, image_size, image_size, channels] uint8; see `covidjax.data.decode.decode`
    Reads `dataset.{root, fold}` and what `decode` reads. Raises UserError for a wrong layout, table or file.
    """
    examples = decode(list_files(dataset, split), dataset)
    missing = [name for label, name in enumerate(examples.classes) if label not in set(examples.labels.tolist())]
    if split == "train" and missing:
        raise UserError(f"no good training image is left in class {', '.join(missing)}: mend its files")
    return examples


def list_files(dataset: ConfigDict, split: str) -> ImageFiles:
    """List the files of one split in the order of their names, with classes and patients; opens only folds.csv.

    Classes are the sorted folder names of train. Names that begin with a dot are passed over.
    `dataset.fold` -1: the split is the folder's; without a val folder a fixed eighth of train is held out, by patient
    if there is a folds.csv. `dataset.fold` k: see `covidjax.data.splits.assign_fold`, with the rows in their order.
    Raises UserError for a wrong layout or table.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    root = Path(dataset.root).expanduser()
    rows, notes = _scan(root)
    folders = {row.split for row in rows}
    table = root / "folds.csv"
    patients_known = table.exists()
    if patients_known:
        rows = _read_table(table, rows)
    else:
        notes.append("no patient ids: the split is image-level")
    classes = sorted({row.label for row in rows if row.split == "train"})
    if dataset.fold != -1:
        if not patients_known:
            raise UserError(f"dataset.fold is {dataset.fold}, but {table} does not exist: add it, or set it to -1")
        labels = [classes.index(row.label) for row in rows]
        assigned = assign_fold([row.fold for row in rows], dataset.fold, labels, [row.patient for row in rows])
        rows = [dataclasses.replace(row, split=name) for row, name in zip(rows, assigned, strict=True)]
    elif split not in folders and split != "val":
        raise UserError(f"{root / split} does not exist; {LAYOUT}")
    elif "val" not in folders and split != "test":
        rows = _hold_out_val(rows, classes, patients_known)
        unit = "by patient" if patients_known else "by image: no patient ids, so this is image-level"
        num_held_out = sum(row.split == "val" for row in rows)
        notes.append(f"no val folder: {num_held_out} images of train are held out as val, {unit}; no seed changes them")
    if patients_known:
        check_patients_in_one_split([row.split for row in rows], [row.patient for row in rows])
    chosen = sorted((row for row in rows if row.split == split), key=lambda row: row.name)
    names = tuple(row.name for row in chosen)
    return ImageFiles(
        root=root,
        split=split,
        names=names,
        labels=tuple(classes.index(row.label) for row in chosen),
        patients=tuple(row.patient for row in chosen) if patients_known else names,
        patients_known=patients_known,
        classes=tuple(classes),
        notes=tuple(notes),
    )


def _scan(root: Path) -> tuple[list[_Row], list[str]]:
    """List the images of all splits, in order, and what was ignored (as notes)."""
    for path in (root, root / "train"):
        if not path.is_dir():
            raise UserError(f"{path} does not exist or is no folder; {LAYOUT}")
    rows: list[_Row] = []
    ignored: list[str] = []
    empty: list[str] = []
    class_folders: dict[str, list[str]] = {}
    for split in SPLITS:
        entries = _visible(root / split) if (root / split).is_dir() else []
        class_folders[split] = [path.name for path in entries if path.is_dir()]
        ignored += [f"{split}/{path.name}" for path in entries if not path.is_dir()]
        for label in class_folders[split]:
            files = _visible(root / split / label)
            images = {path.name for path in files if path.suffix.lower() in SUFFIXES and not path.is_dir()}
            rows += [_Row(f"{split}/{label}/{name}", label, split) for name in sorted(images)]
            ignored += [f"{split}/{label}/{path.name}" for path in files if path.name not in images]
            if not images:
                empty.append(str(root / split / label))
    if not class_folders["train"]:
        raise UserError(f"{root / 'train'} has no class folders; {LAYOUT}")
    if empty:
        raise UserError(f"class folders without images: {', '.join(empty)}; fill or remove them; {LAYOUT}")
    for split in SPLITS[1:]:
        unknown = sorted(set(class_folders[split]) - set(class_folders["train"]))
        if unknown:
            raise UserError(
                f"{root / split} has classes that train lacks: {', '.join(unknown)}; "
                f"allowed: {', '.join(class_folders['train'])}"
            )
    notes = []
    if ignored:
        shown = ", ".join(ignored[:5]) + (", ..." if len(ignored) > 5 else "")
        notes.append(f"{len(ignored)} entries are no images by their ending or place and were ignored: {shown}")
    return rows, notes


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); {LAYOUT}") from error


def _read_table(table: Path, on_disk: Iterable[_Row]) -> list[_Row]:
    """Read folds.csv, in its order, and hold it against the files that are there."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{table} lacks the columns {', '.join(missing)}; needed: {', '.join(COLUMNS)}")
            records = [{column: (record[column] or "").strip() for column in COLUMNS} for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read: {error}; needed: UTF-8 text, {', '.join(COLUMNS)}") from error
    rows = []
    for number, record in enumerate(records, start=2):
        if not record["patient"] or not record["fold"].isdecimal():
            raise UserError(f"{table} line {number}: needs a patient, and a fold that is 0 or a whole number above it")
        name = f"{record['split']}/{record['label']}/{record['file']}"
        rows.append(_Row(name, record["label"], record["split"], record["patient"], int(record["fold"])))
    names = collections.Counter(row.name for row in rows)
    files = {row.name for row in on_disk}
    faults = [f"{name} (file, but no row)" for name in sorted(files - set(names))]
    faults += [f"{name} (row, but no file)" for name in sorted(set(names) - files)]
    faults += [f"{name} ({count} rows)" for name, count in sorted(names.items()) if count > 1]
    if faults:
        raise UserError(f"{table} and the folders disagree on {len(faults)} files: {'; '.join(faults)}; mend either")
    return rows


def _hold_out_val(rows: list[_Row], classes: list[str], patients_known: bool) -> list[_Row]:
    train = [row for row in rows if row.split == "train"]
    patients = [row.patient for row in train] if patients_known else None
    held_out = hold_out_eighth([classes.index(row.label) for row in train], patients)
    kept = [dataclasses.replace(row, split="val" if out else "train") for row, out in zip(train, held_out, strict=True)]
    return kept + [row for row in rows if row.split != "train"]
