"""The part that all sources of files share: rows of images, and the choice of a split."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from covidjax.data.examples import FACTS
from covidjax.data.splits import assign_fold, hold_out_eighth, told_of_torn
from covidjax.errors import UserError, some_of


@dataclasses.dataclass(frozen=True)
class Row:
    """One image: its path below the root, and what its place and the table say of it.

    findings: as `Examples.findings` has them, in sources with several an image; `label` names the present ones then.
    view, spacing, source: what a DICOM file says, see `covidjax.data.formats.dicom.Facts`
    masks: the paths of its masks, which are joined, () where there is none, None in sources without masks; fault: what
    is wrong with the pair, told without opening a file.
    """

    name: str
    split: str
    label: str = ""
    patient: str = ""
    fold: int = -1
    masks: tuple[str, ...] | None = None
    fault: str = ""
    findings: tuple[int, ...] | None = None
    view: str = ""
    spacing: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files, listed but not opened.

    split: that of the files; '' where they are those of all
    rows: n images
    classes: of the images or, where there are masks, of their pixels; where there are findings, these
    notes: sentences that go to `Examples.notes`
    reader: gives the bytes of a name where names are no files below `root`
    paths: the files below `root` of names that are not those of their files
    drawn: the rows of `Examples.drawn`
    torn: the message on patients that are in several splits; '' where none is
    """

    root: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    patients_known: bool
    notes: tuple[str, ...] = ()
    reader: Callable[[str], bytes] | None = None
    split: str = ""
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    drawn: tuple[tuple[str, ...], ...] = ()
    torn: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the images: n."""
        return tuple(row.name for row in self.rows)

    @property
    def labels(self) -> tuple[int, ...]:
        """Indices into `classes`: n, zeros where there are masks or findings."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return tuple(numbers[row.label] if row.label and self.one_class else 0 for row in self.rows)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient identifiers: n, the names of the images where no patients are known."""
        return tuple(row.patient if self.patients_known else row.name for row in self.rows)

    @property
    def facts(self) -> dict[str, tuple[str, ...]]:
        """Of `FACTS` those that any image has: n each."""
        found = {name: tuple(getattr(row, name) for row in self.rows) for name in FACTS}
        return {name: texts for name, texts in found.items() if any(texts)}

    @property
    def with_masks(self) -> bool:
        """Whether the source has masks, of all images or of none."""
        return any(row.masks is not None for row in self.rows[:1])

    @property
    def one_class(self) -> bool:
        """Whether an image has one class, and neither a mask nor findings."""
        return not self.with_masks and not any(row.findings is not None for row in self.rows[:1])

    def read(self, name: str) -> bytes:
        """The bytes of an image or a mask. Raises OSError."""
        return self.reader(name) if self.reader else (self.root / self.paths.get(name, name)).read_bytes()


@dataclasses.dataclass(frozen=True)
class Scan:
    """Images as their folders tell of them. places: the names that the image of a row of the table may have."""

    rows: Sequence[Row]
    places: Callable[[Mapping[str, str]], Sequence[str]]
    notes: Sequence[str]


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Classes in the order of their labels: numbers by value (0, 1, 2, 10), also within names (grade2, grade10)."""
    own = set(names)
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in own):
        return tuple(sorted(own, key=lambda name: (float(name), name)))

    def parts(name: str) -> tuple[list[str | int], str]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name

    return tuple(sorted(own, key=parts))


def check_classes(classes: Sequence[str], where: object) -> None:
    """Raises UserError for one class only, several findings in a name, and names that differ in case or spaces only."""
    if len(classes) < 2:
        raise UserError(f"{where} has one class only, {''.join(classes)}: there is nothing to tell apart; add another")
    if joined := [name for name in classes if _is_joined(name, set(classes))]:
        raise UserError(
            f"{where} has classes that name several findings: {some_of(joined)}; an image has one class here: keep the "
            "images with one finding, or make one table for each finding, with the labels present and absent"
        )
    alike = collections.defaultdict(list)
    for name in classes:
        alike["".join(name.casefold().split())].append(name)
    if twins := [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]:
        raise UserError(f"{where} has classes that differ in case or spaces only: {some_of(twins)}; write one")


def _is_joined(name: str, classes: set[str]) -> bool:
    """Whether a class is several findings, as in `Effusion|Mass`."""
    if len(re.findall(r"[^|;]*[^|;\s][^|;]*", name)) > 1:
        return True
    parts = [part.strip() for part in re.split(r"[,+&]", name) if part.strip()]
    return len(parts) > 1 and any(part in classes for part in parts)


def choose_split(files: ImageFiles, split: str, fold: int, table: Path, missing: str) -> ImageFiles:
    """One split of the files of all, in the order of their names.

    fold -1: the split is that of the rows; without val a fixed eighth of train is held out, by patient if they are
    known. fold k: see `covidjax.data.splits.assign_fold`, with the rows in their order; it needs a table.
    A patient in two splits is told by `ImageFiles.torn`.
    Raises UserError: `missing`, where there is no such split.
    """
    rows, notes, patients = files.rows, list(files.notes), files.patients
    splits: Sequence[str] = [row.split for row in rows]
    numbers = {label: number for number, label in enumerate(sorted({row.label for row in rows}))}
    labels = [numbers[row.label] if files.one_class else 0 for row in rows]
    if fold != -1:
        if not table.exists():
            raise UserError(f"dataset.fold is {fold}, but {table} does not exist: add it, or set it to -1")
        splits = assign_fold([row.fold for row in rows], fold, labels, patients if files.patients_known else None)
    elif split not in splits and split != "val":
        raise UserError(missing)
    elif "val" not in splits and split != "test":
        known = files.patients_known
        held_out = hold_out_eighth(labels, patients if known else None, np.asarray(splits) == "train")
        splits = np.where(held_out, "val", splits).tolist()
        unit = "by patient" if known else "by image: no patient ids, so this is image-level"
        notes.append(f"no val split: {sum(held_out)} images of train are held out as val, {unit}; no seed changes them")
    torn = told_of_torn(splits, patients) if files.patients_known else ""
    rows = tuple(dataclasses.replace(row, split=own) for row, own in zip(rows, splits, strict=True))
    chosen = sorted((row for row in rows if row.split == split), key=lambda row: row.name)
    present = {row.label for row in chosen}
    if absent := [name for name in files.classes if files.one_class and name not in present]:
        notes.append(f"{split} has no image of {some_of(absent)}")
    return dataclasses.replace(files, split=split, rows=tuple(chosen), notes=tuple(notes), torn=torn)
