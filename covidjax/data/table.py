"""The table of a folder of images: a patient, a split and a fold for each file."""

import collections
import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from covidjax.data.examples import SPLITS
from covidjax.data.listing import Row
from covidjax.errors import UserError, some_of
from covidjax.files import printable

PATIENT = "patient"  # the column that may be missing


def table_rows(
    table: Path,
    columns: Sequence[str],
    places: Callable[[Mapping[str, str]], Sequence[str]],
    on_disk: Sequence[Row],
) -> tuple[list[Row], bool]:
    """The rows of a CSV file, in its order, held against the files that are there; and whether they have patients.

    columns: file, split and others that are needed, patient where there is one; fold where the rows need one.
    places: the names that the image of a row may have.
    Raises UserError where the table cannot be read or lacks a column, for a row without a patient, fold or known split,
    and where table and files differ.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = header = [name.strip().lower() for name in reader.fieldnames or ()]
            missing = [column for column in columns if column not in header and column != PATIENT]
            if missing:
                raise UserError(f"{table} lacks the columns {', '.join(missing)}; needed: {', '.join(columns)}")
            columns = [column for column in columns if column in header]
            records = [{column: printable((record[column] or "").strip()) for column in columns} for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read: {error}; needed: UTF-8 text, {', '.join(columns)}") from error
    known = PATIENT in columns
    for number, record in enumerate(records, start=2):
        if not record.get(PATIENT, "-") or not record.get("fold", "0").isdecimal():
            raise UserError(f"{table} line {number}: needs a patient, and a fold that is 0 or a whole number above it")
        if record["split"] not in SPLITS:
            raise UserError(f"{table} line {number}: split is {record['split']!r}; allowed: {', '.join(SPLITS)}")
    files, names = {row.name: row for row in on_disk}, []
    for record in records:
        options = places(record)
        names.append(next((name for name in options if name in files), options[0]))
    counts = collections.Counter(names)
    faults = [f"{name} (file, but no row)" for name in sorted(files.keys() - counts.keys())]
    faults += [f"{name} (row, but no file)" for name in sorted(counts.keys() - files.keys())]
    faults += [f"{name} ({count} rows)" for name, count in sorted(counts.items()) if count > 1]
    if faults:
        raise UserError(
            f"{table} and the folders disagree on {len(faults)} files: {some_of(faults, '; ')}; mend either"
        )
    return [
        dataclasses.replace(
            files[name], split=own["split"], patient=own.get(PATIENT, ""), fold=int(own.get("fold", -1))
        )
        for name, own in zip(names, records, strict=True)
    ], known
