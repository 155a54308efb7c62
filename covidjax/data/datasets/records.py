"""The images of a data set as its builder lists them, and everything that is checked before one of them is written."""

import collections
import csv
import dataclasses
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from covidjax.console import Progress
from covidjax.data.datasets.stored import stored, stored_pair
from covidjax.data.decode import in_parallel
from covidjax.data.picture import SUFFIXES, BadImageError
from covidjax.data.splits import draw_folds, draw_splits, hold_out_eighth
from covidjax.errors import UserError

Content = Path | Callable[[], bytes]
Counts = Mapping[str, Mapping[str, int]]
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")
TEXT_ENCODING = "utf-8-sig"


@dataclasses.dataclass(frozen=True)
class Record:
    """One image.

    name: unique in the data set; image, mask: files, or functions that return the bytes of an image file; label: name
    of a class; patient: '' where unknown; split: 'train', 'val', 'test', or '' where it is to be drawn; fold, held_out
    (for val, from train): drawn.
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

    def encoded(self, num_mask_classes: int) -> tuple[bytes, bytes]:
        """The image and its mask (b'' without one) as they are stored. Raises BadImageError and OSError."""
        image = _read(self.image)
        if self.mask is None:
            return stored(image), b""
        name = self.mask.name if isinstance(self.mask, Path) else "mask"
        return stored_pair(image, _read(self.mask), name, num_mask_classes)


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
        found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
        images = [path for path in found if path.name.lower().endswith(suffixes)]
        if not images:
            self.faults.append(f"{folder} has no files that end in {' '.join(suffixes)}")
        if others := [path.name for path in found if path not in images]:
            self.notes.append(f"{folder}: ignored {len(others)} other files, such as {others[0]}")
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
            self.faults.append(f"{path} cannot be read as text ({error})")
        return []

    def table(self, path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
        """The rows of a CSV file; columns are known by their names in small letters. What is amiss is a fault."""
        rows = csv.DictReader(self.lines(path))
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        missing = [column for column in columns if column not in rows.fieldnames]
        if missing and rows.fieldnames:
            self.faults.append(f"{path} lacks the columns {', '.join(missing)}: it has {', '.join(rows.fieldnames)}")
        if missing:
            return []
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in rows]


def inside(manual_dir: Path, name: str) -> Path:
    """The folder `name` of manual_dir, or manual_dir itself where it is that folder."""
    return manual_dir if manual_dir.name == name and not (manual_dir / name).exists() else manual_dir / name


def settle(
    name: str, listing: Listing, classes: tuple[str, ...], mask_classes: tuple[str, ...], published: Counts
) -> Listing:
    """The listing with splits, folds and all notes, once every image has been opened.

    published: images by split ('all': of the whole set) and class ('': of all classes). What differs is a note.
    Raises UserError with every fault, those of the files included.
    """
    records, faults = listing.records, list(listing.faults)
    twice = [key for key, count in collections.Counter(record.name for record in records).items() if count > 1]
    faults += [f"{key} is there more than once" for key in twice]
    faults += _bad_images(name, records, len(mask_classes))
    present = {record.label for record in records}
    if records:
        faults += [f"no image of class {label}" for label in classes if label not in present]
    if not records and not faults:
        faults = ["no image was found"]
    if faults:
        raise UserError(f"{name}: {len(faults)} problems, nothing was written: {'; '.join(faults)}")
    records, notes = _draw(records, classes, listing.notes)
    notes += _differences(records, published)
    splits = collections.defaultdict(set)
    for record in records:
        if record.patient:
            splits[record.patient].add(record.split)
    torn = tuple(sorted(patient for patient, parts in splits.items() if len(parts) > 1))
    if torn:
        notes.append(
            f"the published split has {len(torn)} patients on two sides ({', '.join(torn[:5])}...): as it stands it is "
            "image-level; dataset.fold=0 to 4 keep patients together"
        )
    unknown = sum(not record.patient for record in records)
    if unknown:
        notes.append(f"the patient of {unknown} of {len(records)} images is unknown: the split is image-level")
    return Listing(records, [], notes, torn)


def _read(content: Content) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content()


def _what_is_there(path: Path) -> str:
    """The entries of the nearest folder that exists, for the person who unpacked another archive or none."""
    parent = next(folder for folder in path.parents if folder.exists())
    try:
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f" ({parent}: {error.strerror})"
    archives = [name for name in names if name.lower().endswith(ARCHIVES) and not name.lower().endswith(".nii.gz")]
    if archives:
        return f" (unpack {', '.join(archives[:4])} in {parent})"
    return f" ({parent} has {', '.join(names[:6]) + (', ...' if len(names) > 6 else '') if names else 'nothing'})"


def _bad_images(name: str, records: list[Record], num_mask_classes: int) -> list[str]:
    def fault(index: int) -> str:
        record = records[index]
        try:
            record.encoded(num_mask_classes)
        except BadImageError as error:
            return f"{record.name} ({error})"
        except OSError as error:
            return f"{record.name} ({error.strerror or type(error).__name__})"
        return ""

    progress = Progress(f"{name}: checking", len(records))
    faults = [text for text in in_parallel(fault, len(records), progress) if text]
    if records:
        progress.finish(f"{name}: checked {len(records)} images")
    return faults


def _draw(records: list[Record], classes: tuple[str, ...], notes: list[str]) -> tuple[list[Record], list[str]]:
    """Records with folds and, where the set has none, with splits and images held out for val; and the notes."""
    notes = list(notes)
    labels = [classes.index(record.label) if classes else 0 for record in records]
    patients = [record.patient or record.name for record in records]
    splits = [record.split for record in records]
    folds, held_out = [-1] * len(records), np.zeros(len(records), bool)
    try:
        folds = list(draw_folds(labels, patients))
    except UserError as error:
        notes.append(f"no folds: {error}")
    if not all(splits):
        splits = list(draw_splits(labels, patients))
        notes.append("the set has no split of its own: one was drawn, by patient where known")
    elif "val" not in splits:
        train = [index for index, split in enumerate(splits) if split == "train"]
        held_out[train] = hold_out_eighth([labels[index] for index in train], [patients[index] for index in train])
        notes.append(f"no val split: {held_out.sum()} images of train are held out as val, by patient where known")
    drawn = zip(records, splits, folds, held_out.tolist(), strict=True)
    changed = [
        dataclasses.replace(record, split=split, fold=fold, held_out=held) for record, split, fold, held in drawn
    ]
    return changed, notes


def _differences(records: list[Record], published: Counts) -> list[str]:
    def differ(split: str, wanted: Mapping[str, int]) -> Iterator[str]:
        part = [record for record in records if split in (record.split, "all")]
        for label, count in wanted.items():
            found = sum(label in (record.label, "") for record in part)
            if found != count:
                yield f"{found} images of {' '.join((split, label)).strip()}, published are {count}"

    lines = [line for split, wanted in published.items() for line in differ(split, wanted)]
    return [f"counts differ from the published ones: {'; '.join(lines)}"] if lines else []
