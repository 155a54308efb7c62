"""The first sheet of an Excel file (ECMA-376), read as the zipped XML that it is."""

import re
import xml.etree.ElementTree as xml
import zipfile
from pathlib import Path

SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_sheet(path: Path) -> list[list[str]]:
    """Rows of cells as text; a cell that is not there is ''. Raises OSError, and ValueError for another file."""
    try:
        with zipfile.ZipFile(path) as book:
            strings: list[str] = []
            if "xl/sharedStrings.xml" in book.namelist():
                strings = [_text(item) for item in xml.fromstring(book.read("xl/sharedStrings.xml"))]
            sheet = xml.fromstring(book.read("xl/worksheets/sheet1.xml"))
            return [_row(row, strings) for row in sheet.iter(f"{SPACE}row")]
    except (zipfile.BadZipFile, KeyError, IndexError, xml.ParseError) as error:
        raise ValueError(f"no Excel file ({error})") from error


def _row(row: xml.Element, strings: list[str]) -> list[str]:
    cells: list[str] = []
    for cell in row.iter(f"{SPACE}c"):
        number = _column(cell.get("r", "")) or len(cells) + 1
        value = cell.find(f"{SPACE}v")
        text = _text(cell) if value is None else value.text or ""
        cells += [""] * (number - len(cells))
        cells[number - 1] = (strings[int(text)] if cell.get("t") == "s" else text).strip()
    return cells


def _text(element: xml.Element) -> str:
    """The text of a string with its formatted runs, without the phonetic ones beside them."""
    runs = [run.find(f"{SPACE}t") for run in element.iter(f"{SPACE}r")] or list(element.iter(f"{SPACE}t"))
    return "".join(run.text or "" for run in runs if run is not None)


def _column(reference: str) -> int:
    """The number, from 1, of the column of a cell such as 'AB12'; 0 where it has no reference."""
    number = 0
    for letter in re.match("[A-Z]*", reference)[0]:  # type: ignore[index]
        number = number * 26 + ord(letter) - ord("A") + 1
    return number
