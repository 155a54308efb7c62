"""What the folder sources share: rows of images, their table of patients, the choice of a split."""

import collections
import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from covidjax.data.decode import ImageFiles
from covidjax.data.splits import assign_fold, check_patients_in_one_split, hold_out_eighth
from covidjax.errors import UserError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Row:
    """One image: its path below the root, and what its place and the table say of it.

    mask: the path of its mask, '' where it is missing, None in sources without masks; fault: what is wrong with the
    pair.
    """

    name: str
    split: str
    label: str = ""
    patient: str = ""
    fold: int = -1
    mask: str | None = None
    fault: str = ""


def visible(folder: Path, layout: str) -> list[Path]:
    """What is in a folder, sorted, without names that begin with a dot. Raises UserError where it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); {layout}") from error


def some_of(names: Sequence[str]) -> str:
    """The first five names, for a note."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def read_table(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, in its order, with the columns asked for.

    Raises UserError where it cannot be read or lacks a column, and for a row without a patient or, where that column
    is asked for, without a fold.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{table} lacks the columns {', '.join(missing)}; needed: {', '.join(columns)}")
            records = [{column: (record[column] or "").strip() for column in columns} for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read: {error}; needed: UTF-8 text, {', '.join(columns)}") from error
    for number, record in enumerate(records, start=2):
        if not record["patient"] or not record.get("fold", "0").isdecimal():
            raise UserError(f"{table} line {number}: needs a patient, and a fold that is 0 or a whole number above it")
    return records


def check_agreement(table: Path, in_table: Iterable[str], on_disk: Iterable[str]) -> None:
    """Raises UserError, with all names, where a table and the files that are there differ."""
    names, files = collections.Counter(in_table), set(on_disk)
    faults = [f"{name} (file, but no row)" for name in sorted(files - set(names))]
    faults += [f"{name} (row, but no file)" for name in sorted(set(names) - files)]
    faults += [f"{name} ({count} rows)" for name, count in sorted(names.items()) if count > 1]
    if faults:
        raise UserError(f"{table} and the folders disagree on {len(faults)} files: {'; '.join(faults)}; mend either")


def choose_split(
    rows: list[Row], split: str, fold: int, table: Path, patients_known: bool, missing: str
) -> tuple[list[Row], list[str]]:
    """The rows of one split in the order of their names, and notes.

    fold -1: the split is that of the rows; without val a fixed eighth of train is held out, by patient if they are
    known. fold k: see `covidjax.data.splits.assign_fold`, with the rows in their order; it needs a table.
    Raises UserError: `missing`, where there is no such split, and for a patient in two splits.
    """
    notes, present = [], {row.split for row in rows}
    classes = sorted({row.label for row in rows})
    if fold != -1:
        if not table.exists():
            raise UserError(f"dataset.fold is {fold}, but {table} does not exist: add it, or set it to -1")
        labels = [classes.index(row.label) for row in rows]
        assigned = assign_fold([row.fold for row in rows], fold, labels, [row.patient for row in rows])
        rows = [dataclasses.replace(row, split=name) for row, name in zip(rows, assigned, strict=True)]
    elif split not in present and split != "val":
        raise UserError(missing)
    elif "val" not in present and split != "test":
        rows = _hold_out_val(rows, classes, patients_known)
        unit = "by patient" if patients_known else "by image: no patient ids, so this is image-level"
        num_held_out = sum(row.split == "val" for row in rows)
        notes.append(f"no val split: {num_held_out} images of train are held out as val, {unit}; no seed changes them")
    if patients_known:
        check_patients_in_one_split([row.split for row in rows], [row.patient for row in rows])
    return sorted((row for row in rows if row.split == split), key=lambda row: row.name), notes


def image_files(
    root: Path,
    split: str,
    rows: list[Row],
    classes: Sequence[str],
    patients_known: bool,
    notes: list[str],
    reader: Callable[[str], bytes] | None = None,
) -> ImageFiles:
    """The list that `decode` takes. Labels are 0 where the rows have none. reader: see `ImageFiles`."""
    names = tuple(row.name for row in rows)
    return ImageFiles(
        root=root,
        split=split,
        names=names,
        labels=tuple(classes.index(row.label) if row.label else 0 for row in rows),
        patients=tuple(row.patient for row in rows) if patients_known else names,
        patients_known=patients_known,
        classes=tuple(classes),
        notes=tuple(notes),
        masks=tuple(row.mask for row in rows if row.mask is not None),
        faults=tuple((index, row.fault) for index, row in enumerate(rows) if row.fault),
        reader=reader,
    )


def _hold_out_val(rows: list[Row], classes: list[str], patients_known: bool) -> list[Row]:
    train = [row for row in rows if row.split == "train"]
    patients = [row.patient for row in train] if patients_known else None
    held_out = hold_out_eighth([classes.index(row.label) for row in train], patients)
    kept = [dataclasses.replace(row, split="val" if out else "train") for row, out in zip(train, held_out, strict=True)]
    return kept + [row for row in rows if row.split != "train"]
