"""The images of a data set as its builder lists them."""

import csv
import dataclasses
import gzip
from collections.abc import Callable, Iterable
from pathlib import Path

from covidjax.data.datasets.stored import stored, stored_pair
from covidjax.data.facts import patients_of
from covidjax.data.formats import dicom
from covidjax.data.formats.read import SUFFIXES
from covidjax.data.table import delimiter_of
from covidjax.data.walk import is_system, may_be_dicom
from covidjax.errors import some_of
from covidjax.files import printable

Content = Path | Callable[[], bytes]
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")
TEXT_ENCODING = "utf-8-sig"


@dataclasses.dataclass(frozen=True)
class Record:
    """One image.

    name: unique in the data set; image, mask: files, or functions that return the bytes of an image file; label: name
    of a class; patient: '' where unknown; split: 'train', 'val', 'test', or '' where it is to be drawn; fold, held_out
    (for val, from train): drawn; findings: as `Examples.findings` has them, None in sets without.
    """

    name: str
    image: Content
    label: str = ""
    patient: str = ""
    source: str = ""
    split: str = ""
    mask: Content | None = None
    fold: int = -1
    held_out: bool = False
    view: str = ""
    spacing: str = ""
    findings: tuple[int, ...] | None = None

    def printable(self) -> "Record":
        """With texts that a data set can hold, see `covidjax.files.printable`."""
        name, label, patient, source = map(printable, (self.name, self.label, self.patient, self.source))
        return dataclasses.replace(self, name=name, label=label, patient=patient, source=source)

    def encoded(self, num_mask_classes: int) -> tuple[bytes, bytes, tuple[str, ...]]:
        """The image and its mask (b'' without one) as they are stored, and remarks on the image.

        Raises BadImageError and OSError.
        """
        content = _read(self.image)
        if self.mask is None:
            image, remarks = stored(content)
            return image, b"", remarks
        name = self.mask.name if isinstance(self.mask, Path) else "mask"
        return stored_pair(content, _read(self.mask), name, num_mask_classes)


def with_facts(records: list[Record]) -> tuple[list[Record], tuple[str, ...]]:
    """The records with what headers of DICOM files say: view, spacing, source where the set names none; and notes.

    Patients too where the set names none of any image, see `covidjax.data.facts.patients_of`.
    """

    def read(record: Record) -> dicom.Facts:
        image = record.image
        return dicom.facts(image) if isinstance(image, Path) and may_be_dicom(image.name) else dicom.Facts()

    told = [read(record) for record in records]
    patients: tuple[str, ...] = tuple(record.patient for record in records)
    notes: tuple[str, ...] = ()
    if not any(patients):
        patients, notes = patients_of([own.patient_id for own in told])
    return [
        dataclasses.replace(
            record,
            patient=patient,
            view=record.view or own.view,
            spacing=own.spacing,
            source=record.source or own.source,
        )
        for record, patient, own in zip(records, patients, told, strict=True)
    ], notes


@dataclasses.dataclass
class Listing:
    """The images that a builder found.

    faults: what keeps the set from being prepared; notes: what its user has to know; torn: the patients that the
    published split has on two sides.
    """

    records: list[Record] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    torn: tuple[str, ...] = ()

    def images(self, folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
        """The files of a folder with one of the endings, sorted. A missing or empty folder is a fault."""
        if not folder.is_dir():
            self.faults.append(f"{folder} does not exist{_what_is_there(folder)}")
            return []
        found = sorted(path for path in folder.iterdir() if not is_system(path.name))
        images = [path for path in found if path.name.lower().endswith(suffixes) and path.is_file()]
        if not images:
            self.faults.append(f"{folder} has no files that end in {' '.join(suffixes)}")
        known = set(images)
        if others := [printable(path.name) for path in found if path not in known]:
            self.notes.append(f"{folder}: {len(others)} other entries were ignored: {some_of(others)}")
        return images

    def lines(self, path: Path) -> list[str]:
        """The lines of a text file, plain or as .gz, without empty ones. A missing or unreadable file is a fault."""
        packed = path.with_name(path.name + ".gz")
        try:
            text = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
            return [line.strip() for line in text.decode(TEXT_ENCODING).splitlines() if line.strip()]
        except FileNotFoundError:
            self.faults.append(f"{path} does not exist{_what_is_there(path)}")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            self.faults.append(f"{path} cannot be read as text ({error}): save it as UTF-8")
        return []

    def table(self, path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
        """The rows of a CSV file, of commas or semicolons; columns are known by their names in small letters.

        What is amiss is a fault.
        """
        lines = self.lines(path)
        rows = csv.DictReader(lines, delimiter=delimiter_of(lines[0] if lines else ""))
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        missing = [column for column in columns if column not in rows.fieldnames]
        if missing and rows.fieldnames:
            self.faults.append(f"{path} lacks the columns {', '.join(missing)}: it has {some_of(rows.fieldnames)}")
        if missing:
            return []
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in rows]


def inside(manual_dir: Path, name: str) -> Path:
    """The folder `name` of manual_dir, or manual_dir itself where it is that folder."""
    return manual_dir if manual_dir.name == name and not (manual_dir / name).exists() else manual_dir / name


def _read(content: Content) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content()


def _what_is_there(path: Path) -> str:
    """The entries of the nearest folder that exists, for the person who unpacked another archive or none."""
    parent = next(folder for folder in path.parents if folder.exists())
    try:
        names = sorted(printable(entry.name) for entry in parent.iterdir() if not is_system(entry.name))
    except OSError as error:
        return f" ({parent}: {error.strerror})"
    archives = [name for name in names if name.lower().endswith(ARCHIVES) and not name.lower().endswith(".nii.gz")]
    if archives:
        return f" (unpack {some_of(archives)} in {parent})"
    return f" ({parent} has {some_of(names) or 'nothing'})"
