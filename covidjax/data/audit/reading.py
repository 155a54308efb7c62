"""Each image of a data set read once: what its file is, and small gray pictures to compare."""

import dataclasses
import functools
import hashlib
import io
from pathlib import Path

import imagehash
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from covidjax.console import Progress
from covidjax.data import sources
from covidjax.data.decode import in_parallel
from covidjax.data.examples import FACTS, SPLITS, Examples
from covidjax.data.formats.base import BadImageError, one_line_reasons
from covidjax.data.formats.read import open_picture
from covidjax.data.levels import remarks
from covidjax.data.listing import ImageFiles
from covidjax.data.picture import own_pixels
from covidjax.data.table import read_records
from covidjax.errors import UserError

SIDE = 64  # of the small pictures
JPEG_START = b"\xff\xd8\xff"
SUM_AT_50 = 3688  # of the table of luminance that libjpeg writes at quality 50 (ITU-T T.81, table K.1)
Table = dict[tuple[str, str], dict[str, str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Image64:
    """An image of a split, and what its file says.

    label: '' where it has a mask; patient: its own name where none is known
    digest: SHA-256 of the file; pixels: SHA-256 of what was decoded
    quality: of a JPEG by its quantisation table of luminance, as libjpeg counts it, 0 of other files
    levels: the darkest and the brightest of 256; remarks: as `covidjax.data.levels.remarks` has them
    gray: [64, 64] float32, the whole picture squashed; lungs: [64, 64] bool, where masks tell
    hashed: [64] bool, the perceptual hash (imagehash.phash: signs of the low frequencies of the cosine transform)
    bad: why it cannot be decoded, '' of a sound one, which alone has what comes from pixels
    """

    name: str
    split: str
    label: str
    patient: str
    facts: dict[str, str]
    digest: str = ""
    pixels: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    bits: int = 8
    channels: int = 1
    quality: int = 0
    levels: tuple[int, int] = (0, 0)
    remarks: tuple[str, ...] = ()
    gray: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((SIDE, SIDE), np.float32))
    lungs: np.ndarray | None = None
    hashed: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(64, bool))
    bad: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """All images of a data set. notes: of its lists; files: by split, none of a source without files."""

    images: tuple[Image64, ...]
    patients_known: bool
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    files: dict[str, ImageFiles]

    @functools.cached_property
    def good(self) -> tuple[Image64, ...]:
        """Those that can be decoded."""
        return tuple(image for image in self.images if not image.bad)


def read(dataset: ConfigDict, *, masks: bool) -> Images:
    """Reads all splits that the data set has. masks: whether images have masks instead of labels.

    Bad files are told by `Image64.bad`. Raises UserError for what is wrong with tables and layout; patients may be in
    several splits.
    """
    if dataset.name in sources.DRAWN:
        drawn = [sources.load(dataset, split, masks=masks) for split in SPLITS]
        images = [image for examples in drawn for image in _drawn(examples)]
        classes = () if masks or drawn[0].findings is not None else drawn[0].classes
        return Images(tuple(images), True, classes, drawn[0].notes, {})
    found: dict[str, ImageFiles] = {}
    missing: list[str] = []
    for split in SPLITS:
        try:
            found[split] = sources.listed(dataset, split, masks=masks, torn=True)
        except UserError as error:
            if split != "test":
                raise
            missing.append(f"no test split could be listed ({error})")
    images = []
    told = _table(found["train"].root, masks) if dataset.name == "folder" else {}
    for split, files in found.items():
        images += in_parallel(
            functools.partial(_of_file, files, split, dataset, told),
            len(files.rows),
            Progress(f"{split}: reading", len(files.rows), patience=5),
        )
    known = all(files.patients_known for files in found.values())
    notes = dict.fromkeys([*(note for files in found.values() for note in files.notes), *missing])
    classes = found["train"].classes if found["train"].one_class else ()
    return Images(tuple(images), known, classes, tuple(notes), found)


def _table(root: Path, masks: bool) -> Table:
    """The columns of `FACTS` that the table of a folder has, by label and file; labels are '' where there are masks."""
    table, needed = (root / "splits.csv", ("file",)) if masks else (root / "folds.csv", ("file", "label"))
    rows = read_records(table, needed, FACTS) if table.exists() else []
    return {(row.get("label", ""), row["file"]): {fact: row[fact] for fact in FACTS if row.get(fact)} for row in rows}


def _of_file(files: ImageFiles, split: str, dataset: ConfigDict, table: Table, number: int) -> Image64:
    row = files.rows[number]
    parts = row.name.split("/")
    below = ((row.label, "/".join(parts[start:])) for start in range(len(parts)))  # the table names files of any depth
    columns = next((table[key] for key in below if key in table), {})
    facts = {fact: columns.get(fact) or getattr(row, fact) for fact in FACTS}
    patient = row.patient if files.patients_known else row.name
    image = Image64(row.name, split, row.label, patient, facts)
    try:
        if row.fault:
            raise BadImageError(row.fault)
        content = files.read(row.name)
        picture = open_picture(content, dataset.frame)
        with one_line_reasons():
            pixels = own_pixels(picture, 1, window=dataset.window)
            told = remarks(picture, Image.fromarray(pixels[..., 0]), pixels, dataset.window)
    except (BadImageError, OSError) as error:
        return dataclasses.replace(image, bad=str(error))
    return dataclasses.replace(
        with_pixels(image, pixels[..., 0]),
        digest=hashlib.sha256(content).hexdigest(),
        format=picture.format,
        bits=picture.bits,
        channels=1 if picture.is_gray else 3,
        quality=jpeg_quality(content) if content.startswith(JPEG_START) else 0,
        remarks=told,
    )


def with_pixels(image: Image64, pixels: np.ndarray) -> Image64:
    """The image with what its pixels tell. pixels: [height, width] uint8."""
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return dataclasses.replace(
        image,
        pixels=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
        width=pixels.shape[1],
        height=pixels.shape[0],
        levels=(int(pixels.min()), int(pixels.max())),
        gray=np.asarray(small, np.float32),
        hashed=imagehash.phash(Image.fromarray(pixels)).hash.reshape(-1),
    )


def _drawn(examples: Examples) -> list[Image64]:
    found = []
    for number, (name, label) in enumerate(zip(examples.names, examples.label_names, strict=True)):
        image = Image64(name, examples.split, label, examples.patients[number], {}, format="phantom")
        image = with_pixels(image, examples.images[number, ..., 0])
        if examples.masks is not None:
            lungs = Image.fromarray(np.asarray(examples.masks)[number] > 0)
            small = lungs.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            image = dataclasses.replace(image, lungs=np.asarray(small))
        found.append(image)
    return found


def _tables(content: bytes) -> dict[int, list[int]]:
    return getattr(Image.open(io.BytesIO(content)), "quantization", {})


def jpeg_quality(content: bytes) -> int:
    """The quality from 1 to 100 of a JPEG whose tables are those of libjpeg, or come near; 0 without a table."""
    tables = _tables(content)
    if not tables:
        return 0
    scale = 100 * sum(tables[min(tables)]) / SUM_AT_50  # libjpeg's jpeg_quality_scaling, turned round
    return round(min(100, max(1, 100 - scale / 2 if scale <= 100 else 5000 / scale)))
