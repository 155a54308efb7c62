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

PATIENT = "patient"


def delimiter_of(header: str) -> str:
    """What separates the columns of a CSV file: ',' or, as spreadsheet programs have it in many languages, ';'."""
    return ";" if header.count(";") > header.count(",") else ","


def read_records(table: Path, needed: Sequence[str], optional: Sequence[str] = (PATIENT,)) -> list[dict[str, str]]:
    """The rows of a CSV file with the needed columns, and the optional ones that are there; patient where one is named.

    Raises UserError where the table cannot be read or lacks a column, and for a row without a patient where others have
    one, without a fold, or without a known split.
    """
    wanted = (*needed, *(column for column in optional if column not in needed))
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            delimiter = delimiter_of(file.readline())
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter)
            reader.fieldnames = header = [name.strip().lower() for name in reader.fieldnames or ()]
            missing = [column for column in needed if column not in header]
            if missing:
                raise UserError(f"{table} lacks the columns {', '.join(missing)}; needed: {', '.join(needed)}")
            columns = [column for column in wanted if column in header]
            records = [{column: printable((record[column] or "").strip()) for column in columns} for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read: {error}; needed: UTF-8 text, {', '.join(needed)}") from error
    if not any(record.get(PATIENT) for record in records):
        records = [{column: value for column, value in record.items() if column != PATIENT} for record in records]
    for number, record in enumerate(records, start=2):
        if not record.get(PATIENT, "-") or not record.get("fold", "0").isdecimal():
            raise UserError(f"{table} line {number}: needs a patient, and a fold that is 0 or a whole number above it")
        if record.get("split", SPLITS[0]) not in SPLITS:
            raise UserError(f"{table} line {number}: split is {record['split']!r}; allowed: {', '.join(SPLITS)}")
    return records


def column_of(table: Path, column: str, names: Sequence[str]) -> list[str]:
    """The texts of any column of a CSV file for images, '' of those that it has no row of, or several.

    names: of the images; `file` of the table may be below any of the folders in a name, and of rows with the same file
    counts the one whose label, and split, are among these folders. Raises UserError where the table cannot be read or
    lacks the column.
    """
    key, by_file = column.strip().lower(), collections.defaultdict(list)
    for record in read_records(table, ("file", key), ("label", "split")):
        by_file[record["file"]].append(record)
    found = []
    for name in names:
        parts = name.split("/")
        rows = next((own for start in range(len(parts)) if (own := by_file.get("/".join(parts[start:])))), [])
        for told in ("label", "split"):
            rows = [row for row in rows if row.get(told, "") in parts] if len(rows) > 1 else rows
        found.append(rows[0][key] if len(rows) == 1 else "")
    return found


def table_rows(
    table: Path,
    needed: Sequence[str],
    places: Callable[[Mapping[str, str]], Sequence[str]],
    on_disk: Sequence[Row],
    optional: Sequence[str] = (PATIENT,),
) -> tuple[list[Row], bool]:
    """The rows of a CSV file, in its order, held against the files that are there; and whether they have patients.

    needed, optional: columns, see `read_records`; where split or fold is neither there, rows have '' or -1.
    places: the names that the image of a row may have.
    Raises UserError as `read_records` does, and where table and files differ.
    """
    records = read_records(table, needed, optional)
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
            files[name], split=own.get("split", ""), patient=own.get(PATIENT, ""), fold=int(own.get("fold", -1))
        )
        for name, own in zip(names, records, strict=True)
    ], any(PATIENT in record for record in records)
