"""The part that all sources of files share: rows of images, and the choice of a split."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from covidjax.data.splits import assign_fold, check_patients_in_one_split, hold_out_eighth
from covidjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One image: its path below the root, and what its place and the table say of it.

    mask: the path of its mask, '' where it is missing, None in sources without masks; fault: what is wrong with the
    pair, told without opening a file.
    """

    name: str
    split: str
    label: str = ""
    patient: str = ""
    fold: int = -1
    mask: str | None = None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files, listed but not opened.

    split: that of the files; '' where they are those of all
    rows: n images
    classes: of the images or, where there are masks, of their pixels
    notes: sentences that go to `Examples.notes`
    reader: gives the bytes of a name where names are no files below `root`
    """

    root: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    patients_known: bool
    notes: tuple[str, ...] = ()
    reader: Callable[[str], bytes] | None = None
    split: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the images: n."""
        return tuple(row.name for row in self.rows)

    @property
    def labels(self) -> tuple[int, ...]:
        """Indices into `classes`: n, zeros where there are masks."""
        return tuple(self.classes.index(row.label) if row.label else 0 for row in self.rows)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient identifiers: n, the names of the images where no patients are known."""
        return tuple(row.patient if self.patients_known else row.name for row in self.rows)

    @property
    def with_masks(self) -> bool:
        """Whether each image has a mask."""
        return any(row.mask is not None for row in self.rows)

    def read(self, name: str) -> bytes:
        """The bytes of an image or a mask. Raises OSError."""
        return self.reader(name) if self.reader else (self.root / name).read_bytes()


def some_of(names: Sequence[str]) -> str:
    """The first five names, for a note."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def choose_split(files: ImageFiles, split: str, fold: int, table: Path, missing: str) -> ImageFiles:
    """One split of the files of all, in the order of their names.

    fold -1: the split is that of the rows; without val a fixed eighth of train is held out, by patient if they are
    known. fold k: see `covidjax.data.splits.assign_fold`, with the rows in their order; it needs a table.
    Raises UserError: `missing`, where there is no such split, and for a patient in two splits.
    """
    rows, notes, patients = files.rows, list(files.notes), [row.patient for row in files.rows]
    splits: Sequence[str] = [row.split for row in rows]
    classes = sorted({row.label for row in rows})
    labels = [classes.index(row.label) for row in rows]
    if fold != -1:
        if not table.exists():
            raise UserError(f"dataset.fold is {fold}, but {table} does not exist: add it, or set it to -1")
        splits = assign_fold([row.fold for row in rows], fold, labels, patients)
    elif split not in splits and split != "val":
        raise UserError(missing)
    elif "val" not in splits and split != "test":
        known = files.patients_known
        held_out = hold_out_eighth(labels, patients if known else None, np.asarray(splits) == "train")
        splits = np.where(held_out, "val", splits).tolist()
        unit = "by patient" if known else "by image: no patient ids, so this is image-level"
        notes.append(f"no val split: {sum(held_out)} images of train are held out as val, {unit}; no seed changes them")
    if files.patients_known:
        check_patients_in_one_split(splits, patients)
    rows = tuple(dataclasses.replace(row, split=own) for row, own in zip(rows, splits, strict=True))
    chosen = sorted((row for row in rows if row.split == split), key=lambda row: row.name)
    return dataclasses.replace(files, split=split, rows=tuple(chosen), notes=tuple(notes))
