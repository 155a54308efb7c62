"""Zhao et al., arXiv 2003.13865: CT images out of papers on COVID-19, and CT images without it."""

import csv
import io
from pathlib import Path

import openpyxl

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record
from covidjax.data.picture import SUFFIXES

FOLDERS = {"noncovid": "NonCOVID", "covid": "COVID"}


class CovidCt(ManualBuilder):
    """CT images out of papers, with COVID-19 (349) and without (397), and the authors' lists of train, val and test.

    The patients are those of the authors' two tables.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download https://github.com/UCSD-AI4H/COVID-CT (git clone, or its zip) and put into MANUAL_DIR: "
        "Images-processed/CT_COVID and Images-processed/CT_NonCOVID (unpacked from CT_COVID.zip and CT_NonCOVID.zip), "
        "Data-split/COVID/{train,val,test}CT_COVID.txt, Data-split/NonCOVID/{train,val,test}CT_NonCOVID.txt, "
        "COVID-CT-MetaInfo.xlsx and NonCOVID-CT-MetaInfo.csv"
    )
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {
        "all": {"noncovid": 397, "covid": 349},
        "train": {"noncovid": 234, "covid": 191},
        "val": {"noncovid": 58, "covid": 60},
        "test": {"noncovid": 105, "covid": 98},
    }

    def list_records(self, root: Path) -> Listing:
        """The images that the authors' lists name."""
        listing = Listing()
        patients = {
            "covid": _patients(listing, root / "COVID-CT-MetaInfo.xlsx"),
            "noncovid": _patients(listing, root / "NonCOVID-CT-MetaInfo.csv"),
        }
        for label, name in FOLDERS.items():
            folder = root / "Images-processed" / f"CT_{name}"
            files, listed = {path.name: path for path in listing.images(folder)}, set()
            for split in ("train", "val", "test"):
                table = root / "Data-split" / name / f"{split}CT_{name}.txt"
                for file in listing.lines(table):
                    if file not in files:
                        listing.faults += [f"{table.name} names {file}, which is not in {folder}"] if files else []
                        continue
                    listed.add(file)
                    patient = patients[label].get(_stem(file), "")
                    listing.records.append(Record(f"CT_{name}/{file}", files[file], label, patient, "papers", split))
            if listed and len(listed) < len(files):
                rest = sorted(set(files) - listed)
                listing.notes.append(f"{len(rest)} images of {folder.name} are in no list: left out {', '.join(rest)}")
        return listing


def _patients(listing: Listing, path: Path) -> dict[str, str]:
    """The patient of each image of one of the two tables, by the name of its file without the ending."""
    try:
        rows = _sheet(path.read_bytes()) if path.suffix == ".xlsx" else list(csv.reader(listing.lines(path)))
    except FileNotFoundError:
        listing.faults.append(f"{path} does not exist")
        return {}
    except (OSError, ValueError) as error:
        listing.faults.append(f"{path} cannot be read: {error}")
        return {}
    if not rows:
        return {}
    header = [cell.lower() for cell in rows[0]]
    files = [number for number, cell in enumerate(header) if "file" in cell or "image" in cell]
    patients = [number for number, cell in enumerate(header) if "patient" in cell]
    if not files or not patients:
        listing.faults.append(f"{path} has no columns for file and patient, but {', '.join(filter(None, header))}")
        return {}
    prefix = path.name.split("-")[0]
    filled = [row for row in rows[1:] if len(row) > max(files[0], patients[0]) and row[patients[0]]]
    return {_stem(row[files[0]]): f"{prefix}-{row[patients[0]]}" for row in filled}


def _stem(name: str) -> str:
    """A file name without its ending, if that is one of images."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name


def _sheet(content: bytes) -> list[list[str]]:
    """The rows of the first sheet of an Excel file, '' for empty cells. Raises ValueError for another file."""
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True).worksheets[0]
        return [
            ["" if cell is None else str(cell).strip() for cell in row] for row in sheet.iter_rows(values_only=True)
        ]
    except Exception as error:  # the reader raises many kinds
        raise ValueError(f"no Excel file ({error})") from error
