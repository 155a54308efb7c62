"""A labelled set of other images for a network that is trained: folders of classes, a table, or images with masks."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from covidjax.data import facts, flat, pairs
from covidjax.data.decode import decode
from covidjax.data.examples import Examples, present
from covidjax.data.findings import COLUMN, valued
from covidjax.data.listing import ImageFiles, Row
from covidjax.data.table import PATIENT, read_records, table_rows
from covidjax.data.walk import walk
from covidjax.errors import UserError, some_of

TABLE = ".csv"
LAYOUT = (
    "an external set is a folder with a folder of images for each class, a table (file, label and, where known, "
    "patient) beside its images, or for masks images/ and masks/"
)


def listed(
    root: Path,
    name: str,
    classes: Sequence[str],
    renamed: Mapping[str, str],
    *,
    masks: bool = False,
    findings: bool = False,
) -> ImageFiles:
    """All images of a set, whatever split they were in, with the labels that the network knows.

    root: a folder, or a table of files below its folder; name: of the set; classes: of the network, in label order;
    renamed: by a class of the set the network's class, or '' where its images are left out, which is noted; without one
    a class has its own name. masks, findings: whether the set has masks, or findings, instead of classes.
    Raises UserError for another layout, a wrong table, and classes that the network does not know.
    """
    if masks:
        files = _with_masks(root, classes)
    elif findings:
        files = _with_findings(root, name, classes, renamed)
    elif root.suffix.lower() == TABLE:
        files = _of_table(root)
    else:
        files = _of_folders(root)
    notes = list(files.notes)
    if not masks and not findings:
        own = [renamed.get(row.label, row.label) for row in files.rows]
        theirs = {row.label: label for row, label in zip(files.rows, own, strict=True)}
        if unknown := sorted(old for old, label in theirs.items() if label not in (*classes, "")):
            raise UserError(
                f"{root} has classes that the network does not know: {some_of(unknown)}; it knows {some_of(classes)}: "
                f"name theirs, --classes={unknown[0]}={classes[0]}, or leave images out, --classes={unknown[0]}="
            )
        if idle := sorted(renamed.keys() - theirs.keys()):
            raise UserError(f"--classes names {some_of(idle)}, of which {root} has no image: leave it out")
        kept = [(row, label) for row, label in zip(files.rows, own, strict=True) if label]
        gone = collections.Counter(row.label for row, label in zip(files.rows, own, strict=True) if not label)
        notes += [f"{name}: {count} images of {label} are left out (--classes)" for label, count in gone.items()]
        notes += [f"{name}: {old} is taken as {new}" for old, new in renamed.items() if new]
        if absent := [label for label in classes if label not in {label for _, label in kept}]:
            notes.append(f"{name} has no image of {some_of(absent)}: what needs some is undefined")
        files = dataclasses.replace(files, rows=tuple(dataclasses.replace(row, label=label) for row, label in kept))
    if not files.rows:
        raise UserError(f"{root} has no image to evaluate; {LAYOUT}")
    rows = tuple(sorted(files.rows, key=lambda row: row.name))
    unknown_patients = () if files.patients_known else (f"{name}: no patient ids: intervals are by image",)
    return dataclasses.replace(files, rows=rows, classes=tuple(classes), split=name, notes=(*notes, *unknown_patients))


def load(files: ImageFiles, dataset: ConfigDict) -> Examples:
    """The images decoded as `config.dataset` of the network says. Raises UserError for bad ones."""
    return decode(files, dataset)


def _of_folders(root: Path) -> ImageFiles:
    found = walk(root, LAYOUT)
    if not flat.is_flat(found):
        hint = flat.hint(found) or "it has none"
        if not hint.endswith("network for segmentation, such as config.model.name='unet'"):
            hint = "name the folder that the classes are in, such as that of one split"
        raise UserError(f"{root} holds no folders of classes: {hint}; {LAYOUT}")
    return flat.list_all(found)


def _of_table(table: Path) -> ImageFiles:
    records = read_records(table, flat.NEEDED)
    counts = collections.Counter(record["file"] for record in records)
    if twice := [file for file, count in counts.items() if count > 1]:
        raise UserError(f"{table} has several rows of {some_of(twice)}: an image has one class here")
    if bare := [record["file"] for record in records if not record["label"]]:
        raise UserError(f"{table} has no label for {some_of(bare)}: add it, or leave the rows out")
    rows = [Row(record["file"], "", record["label"], record.get("patient", "")) for record in records]
    rows, known, notes = facts.added(rows, any(row.patient for row in rows), table.parent, {})
    return ImageFiles(table.parent, tuple(rows), (), known, notes)


def _with_findings(table: Path, name: str, classes: Sequence[str], renamed: Mapping[str, str]) -> ImageFiles:
    if table.suffix.lower() != TABLE or not table.is_file():
        raise UserError(
            f"{table} is no table: an external set of findings is one, beside its images, with the columns file, "
            f"{COLUMN}NAME and, where known, patient"
        )
    theirs = {ours.lower(): old.lower() for old, ours in renamed.items() if ours}
    columns = [COLUMN + theirs.get(own.lower(), own.lower()) for own in classes]
    records = read_records(table, ("file",), (PATIENT, *columns))
    there = [column for column in columns if any(column in record for record in records)]
    if not there:
        raise UserError(f"{table} has none of the columns {some_of(columns)}: name its findings so, or with --classes")
    rows = []
    for number, record in enumerate(records, start=2):
        try:
            own = valued([record.get(column, "") for column in columns])
        except ValueError as error:
            raise UserError(f"{table} line {number}: {error}") from error
        label = present(own, classes)
        rows.append(Row(record["file"], "", label, record.get(PATIENT, ""), findings=own))
    rows, known, told = facts.added(rows, any(row.patient for row in rows), table.parent, {})
    absent = [f"{name} has no column of {some_of(set(columns) - set(there))}"] if len(there) < len(columns) else []
    return ImageFiles(table.parent, tuple(rows), (), known, (*told, *absent))


def _with_masks(root: Path, classes: Sequence[str]) -> ImageFiles:
    found = walk(root, LAYOUT)
    scan = pairs.scan(found, {}, joined=len(classes) == 2)
    rows, known = list(scan.rows), all(row.patient for row in scan.rows)
    if (table := root / "splits.csv").exists():

        def places(record: Mapping[str, str]) -> Sequence[str]:
            return scan.places({"split": "", **record})

        rows, known = table_rows(table, ("file",), places, rows)
    rows, known, told = facts.added(rows, known, root, found.paths)
    return ImageFiles(root, tuple(rows), (), known, (*scan.notes, *told, *found.notes), paths=found.paths)
