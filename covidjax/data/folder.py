"""Folders of images, by class or with a mask each; patients, splits and folds in a table if it is there.

By class: `root/train|val|test/<class>/<image>` and `root/folds.csv`. With masks, and `root/splits.csv`:

1. `root/images/<name>.jpg` and `root/masks/<name>.png`
2. the same below `root/train`, `root/val` and `root/test`
3. `<name>.tif` beside `<name>_mask.tif`, in one folder for each patient (the LGG brain MRI set)

A mask may be called `<name>` or `<name>_mask` in all of them. In the third the folder names the patient.
"""

import collections
import csv
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from covidjax.data.examples import SPLITS
from covidjax.data.listing import ImageFiles, Row, choose_split, some_of
from covidjax.data.picture import SUFFIXES
from covidjax.errors import UserError
from covidjax.process import path_of

CLASS_COLUMNS: tuple[str, ...] = ("file", "label", "patient", "split", "fold")
PAIR_COLUMNS = ("file", "patient", "split")
MASK = "_mask"
CLASS_LAYOUT = f"expected layout: root/train|val|test/<class>/<image>, images ending in {' '.join(SUFFIXES)}"
PAIR_LAYOUT = (
    "expected layout: root/images/<name>.jpg and root/masks/<name>.png, or both below root/train|val|test, or "
    "<name>.tif beside <name>_mask.tif in one folder for each patient"
)


def list_files(dataset: ConfigDict, split: str, masks: bool) -> ImageFiles:
    """The files of one split in the order of their names, with patients and classes or masks; opens only the table.

    Classes are the sorted folder names of train or, of masks, `dataset.mask_classes`. Names that begin with a dot are
    passed over. In splits.csv `file` is below images/ or, in the third layout, below the root; fold is needed for
    `dataset.fold` alone. The choice of the split: `covidjax.data.listing.choose_split`; without any split all pairs are
    train. Reads `dataset.{root, fold, mask_classes}`. Raises UserError for a wrong layout or table.
    """
    root = path_of(dataset.root)
    rows, place, ignored = (_scan_pairs if masks else _scan_classes)(root)
    kind = "images, or masks without one," if masks else "images by their ending or place"
    notes = [f"{len(ignored)} entries are no {kind} and were ignored: {some_of(ignored)}"] if ignored else []
    table, columns = root / "folds.csv", CLASS_COLUMNS
    missing = f"{root / split} does not exist; {CLASS_LAYOUT}"
    if masks:
        table, columns = root / "splits.csv", (*PAIR_COLUMNS, "fold") if dataset.fold != -1 else PAIR_COLUMNS
        missing = f"{root} has no {split} split: add {split} rows to {table}, or a folder {root / split}; {PAIR_LAYOUT}"
    known = table.exists() or all(row.patient for row in rows)
    if table.exists():
        rows = _table_rows(table, columns, place, rows)
    elif any(row.split for row in rows) and not all(row.split for row in rows):
        outside = some_of([row.name for row in rows if not row.split])
        raise UserError(f"{root} has split folders and images outside them: {outside}; move them, or add {table}")
    else:
        rows = [dataclasses.replace(row, split=row.split or "train") for row in rows]
    if not known:
        notes.append("no patient ids: the split is image-level")
    classes = dataset.mask_classes if masks else sorted({row.label for row in rows})
    files = ImageFiles(root, tuple(rows), tuple(classes), known, tuple(notes))
    return choose_split(files, split, dataset.fold, table, missing)


def _scan_classes(root: Path) -> tuple[list[Row], str, list[str]]:
    """The images of all splits, in order, how a name in folds.csv becomes a path, and what was ignored."""
    for path in (root, root / "train"):
        if not path.is_dir():
            raise UserError(f"{path} does not exist or is no folder; {CLASS_LAYOUT}")
    rows: list[Row] = []
    ignored: list[str] = []
    empty: list[str] = []
    classes: dict[str, list[str]] = {}
    for split in SPLITS:
        entries = _visible(root / split, CLASS_LAYOUT) if (root / split).is_dir() else []
        classes[split] = [path.name for path in entries if path.is_dir()]
        ignored += [f"{split}/{path.name}" for path in entries if not path.is_dir()]
        for label in classes[split]:
            files = _visible(root / split / label, CLASS_LAYOUT)
            images = {path.name for path in files if path.suffix.lower() in SUFFIXES and not path.is_dir()}
            rows += [Row(f"{split}/{label}/{name}", split, label) for name in sorted(images)]
            ignored += [f"{split}/{label}/{path.name}" for path in files if path.name not in images]
            empty += [] if images else [str(root / split / label)]
    train = classes["train"]
    if not train:
        raise UserError(f"{root / 'train'} has no class folders; {CLASS_LAYOUT}")
    if train == ["images", "masks"]:
        raise UserError(
            f"{root / 'train'} holds images and their masks, which are no classes: choose a network for segmentation, "
            "such as config.model.name='unet'"
        )
    if empty:
        raise UserError(f"class folders without images: {', '.join(empty)}; fill or remove them; {CLASS_LAYOUT}")
    for split in SPLITS[1:]:
        if unknown := ", ".join(sorted(set(classes[split]) - set(train))):
            raise UserError(f"{root / split} has classes that train lacks: {unknown}; allowed: {', '.join(train)}")
    return rows, "{split}/{label}/{file}", ignored


def _scan_pairs(root: Path) -> tuple[list[Row], str, list[str]]:
    """All images with their masks, how a name in splits.csv becomes a path, and what was ignored."""
    if not root.is_dir():
        raise UserError(f"{root} does not exist or is no folder; {PAIR_LAYOUT}")
    parts = [split for split in SPLITS if (root / split / "images").is_dir()]
    if (root / "images").is_dir():
        folders, place = [("", "images", "masks", "")], "images/{file}"
    elif parts:
        folders, place = [(split, f"{split}/images", f"{split}/masks", "") for split in parts], "{split}/images/{file}"
    else:
        folders, place = [], "{file}"
        for path in _folders(root):
            name = path.relative_to(root).as_posix()
            first = name.partition("/")[0]
            split, patient = first if first in SPLITS else "", "" if name in (".", *SPLITS) else path.name
            folders.append((split, name, name, patient))
    rows: list[Row] = []
    ignored: list[str] = []
    for split, images, masks, patient in folders:
        if not (root / masks).is_dir():
            raise UserError(f"{root / masks} does not exist; {PAIR_LAYOUT}")
        found, others = _match(root, images, masks)
        rows += [dataclasses.replace(row, split=split, patient=patient) for row in found]
        ignored += others
    if not any(row.mask for row in rows):
        raise UserError(f"{root} has no image with a mask; {PAIR_LAYOUT}")
    return rows, place, ignored


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and all below it."""
    yield folder
    for path in _visible(folder, PAIR_LAYOUT):
        if path.is_dir():
            yield from _folders(path)


def _match(root: Path, images: str, masks: str) -> tuple[list[Row], list[str]]:
    """The images of a folder with their masks, and the other files of the two folders, but for tables."""
    beside = images == masks
    of_images, of_masks = (
        [path for path in _visible(root / name, PAIR_LAYOUT) if not path.is_dir()] for name in (images, masks)
    )
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
    known = {path.name for path in pictures} | (used if beside else set())
    ignored = [_join(images, path.name) for path in of_images if path.name not in known and path.suffix != ".csv"]
    if not beside:
        ignored += [_join(masks, path.name) for path in of_masks if path.name not in used]
    return rows, ignored


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _visible(folder: Path, layout: str) -> list[Path]:
    """The entries of a folder, sorted, without those that begin with a dot. Raises UserError where that fails."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); {layout}") from error


def _table_rows(table: Path, columns: Sequence[str], place: str, on_disk: Iterable[Row]) -> list[Row]:
    """The rows of a CSV file, in its order, held against the files that are there.

    columns: patient, split and others that are needed; fold where the rows need one. place: how they make the name of
    an image, such as '{split}/images/{file}'.
    Raises UserError where the table cannot be read or lacks a column, for a row without a patient, fold or known split,
    and, with all names, where table and files differ.
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
        if record["split"] not in SPLITS:
            raise UserError(f"{table} line {number}: split is {record['split']!r}; allowed: {', '.join(SPLITS)}")
    names, files = [place.format(**record) for record in records], {row.name: row for row in on_disk}
    counts = collections.Counter(names)
    faults = [f"{name} (file, but no row)" for name in sorted(files.keys() - counts.keys())]
    faults += [f"{name} (row, but no file)" for name in sorted(counts.keys() - files.keys())]
    faults += [f"{name} ({count} rows)" for name, count in sorted(counts.items()) if count > 1]
    if faults:
        raise UserError(f"{table} and the folders disagree on {len(faults)} files: {'; '.join(faults)}; mend either")
    return [
        dataclasses.replace(files[name], split=own["split"], patient=own["patient"], fold=int(own.get("fold", -1)))
        for name, own in zip(names, records, strict=True)
    ]
