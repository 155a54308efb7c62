"""Computed tomography of COVID-19, in images and in volumes.

covid_ct: Zhao et al., arXiv 2003.13865. covid_ct_seg: medicalsegmentation.com.
"""

import csv
import functools
import io
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import tensorflow_datasets as tfds
from nibabel.filebasedimages import ImageFileError
from PIL import Image

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record
from covidjax.data.datasets.stored import png
from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.read import SUFFIXES
from covidjax.errors import some_of

ENDINGS = (".nii.gz", ".nii")
WINDOW = (-1350.0, 150.0)  # Hounsfield units: the lung window, width 1500 around -600


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
    FOLDERS = {"noncovid": "NonCOVID", "covid": "COVID"}
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {
        "all": {"noncovid": 397, "covid": 349},
        "train": {"noncovid": 234, "covid": 191},
        "val": {"noncovid": 58, "covid": 60},
        "test": {"noncovid": 105, "covid": 98},
    }

    def list_records(self, root: Path) -> Listing:
        listing = Listing()
        patients = {
            "covid": _patients(listing, root / "COVID-CT-MetaInfo.xlsx"),
            "noncovid": _patients(listing, root / "NonCOVID-CT-MetaInfo.csv"),
        }
        for label, name in self.FOLDERS.items():
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
                listing.notes.append(f"{len(rest)} images of {folder.name} are in no list: left out {some_of(rest)}")
        return listing


def _patients(listing: Listing, path: Path) -> dict[str, str]:
    """The patient of each image of one of the two tables, by the name of its file without the ending."""
    try:
        rows = _sheet(path.read_bytes()) if path.suffix == ".xlsx" else list(csv.reader(listing.lines(path)))
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        listing.faults.append(f"{path} does not exist" if missing else f"{path} cannot be read: {error}")
        return {}
    header = [cell.lower() for cell in rows[0]] if rows else []
    file = next((number for number, cell in enumerate(header) if "file" in cell or "image" in cell), None)
    patient = next((number for number, cell in enumerate(header) if "patient" in cell), None)
    if file is None or patient is None:
        if rows:
            listing.faults.append(f"{path} has no columns for file and patient, but {some_of(filter(None, header))}")
        return {}
    prefix = path.name.split("-")[0]
    filled = [row for row in rows[1:] if len(row) > max(file, patient) and row[patient]]
    return {_stem(row[file]): f"{prefix}-{row[patient]}" for row in filled}


def _stem(name: str) -> str:
    """A file name without its ending, if that is one of images or volumes."""
    ending = next((ending for ending in (*ENDINGS, *SUFFIXES) if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def _sheet(content: bytes) -> list[list[str]]:
    """The rows of the first sheet of an Excel file, '' for empty cells. Raises ValueError for another file."""
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True).worksheets[0]
        rows = sheet.iter_rows(values_only=True)
        return [["" if cell is None else str(cell).strip() for cell in row] for row in rows]
    except Exception as error:  # the reader raises many kinds
        raise ValueError(f"no Excel file ({error})") from error


class CovidCtSeg(ManualBuilder):
    """CT slices of COVID-19 in the lung window, with masks: ground glass, consolidation, pleural effusion.

    `slices`: 100 slices of more than 40 patients, which nobody tells apart, so their split is drawn by image.
    `volumes`: 9 volumes from Radiopaedia, each a patient.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download from https://medicalsegmentation.com/covid19 into MANUAL_DIR: for covid_ct_seg/slices tr_im.nii.gz "
        "and tr_mask.nii.gz; for covid_ct_seg/volumes rp_im.zip and rp_msk.zip, unpacked as rp_im/1.nii.gz to "
        "9.nii.gz and rp_msk/1.nii.gz to 9.nii.gz"
    )
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("slices", "volumes")]
    PUBLISHED = {"slices": {"all": {"": 100}}, "volumes": {"all": {"": 829}}}
    MASK_CLASSES = ("background", "ground_glass", "consolidation", "pleural_effusion")

    def list_records(self, root: Path) -> Listing:
        listing, source = Listing(), "radiopaedia"
        if self.builder_config.name == "slices":
            pairs, source = [("tr_im", _named(root, "tr_im"), _named(root, "tr_mask"), "")], "sirm"
        else:
            images = {_stem(path.name): path for path in listing.images(root / "rp_im", ENDINGS)}
            pairs = [(stem, path, _named(root / "rp_msk", stem), f"rp-{stem}") for stem, path in images.items()]
            if images and len(images) != 9:
                listing.notes.append(f"{len(images)} volumes; published are 9")
        for name, image, mask, patient in pairs:
            volume, ids = _open(listing, image, WINDOW), _open(listing, mask, None)
            if volume is None or ids is None:
                continue
            shape = volume.shape
            if shape != ids.shape or len(shape) != 3:
                listing.faults.append(f"{image} has the shape {shape} and {mask} {ids.shape}: they must be equal")
                continue
            for index in range(shape[2]):
                parts = [functools.partial(part.slice, index) for part in (volume, ids)]
                record = Record(f"{name}/{index:04d}", parts[0], patient=patient, source=source, mask=parts[1])
                listing.records.append(record)
        return listing


class _Volume:
    """A NIfTI file; its voxels are read when the first slice is asked for, and kept as bytes."""

    def __init__(self, path: Path, window: tuple[float, float] | None) -> None:
        image = nibabel.load(path)
        self.turns = nibabel.io_orientation(image.affine)  # to axes that grow to the patient's right, front and top
        self.path, self.image, self.window = path, image, window
        self.shape = (
            tuple(image.shape[axis] for axis in np.argsort(self.turns[:, 0])) if image.ndim == 3 else image.shape
        )

    @functools.cached_property
    def voxels(self) -> np.ndarray:
        try:
            values = nibabel.apply_orientation(np.asarray(self.image.dataobj), self.turns)
        except (OSError, ValueError, EOFError) as error:
            raise BadImageError(f"{self.path} is damaged: {' '.join(str(error).split())}") from error
        if self.window:
            low, high = self.window
            return np.round((np.clip(values, low, high) - low) * (255 / (high - low))).astype(np.uint8)
        ids = np.clip(np.round(values), 0, 255).astype(np.uint8)
        if not np.array_equal(ids, values):
            raise BadImageError(f"{self.path} has values that are no class ids")
        return ids

    def slice(self, index: int) -> bytes:
        """A slice as PNG, as radiologists look at it: front above, the patient's right on the left."""
        return png(Image.fromarray(np.ascontiguousarray(self.voxels[::-1, ::-1, index].T)))


def _open(listing: Listing, path: Path, window: tuple[float, float] | None) -> _Volume | None:
    try:
        return _Volume(path, window)
    except FileNotFoundError:
        listing.faults.append(f"{path} does not exist")
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        listing.faults.append(f"{path} is no NIfTI file ({' '.join(str(error).split())})")
    return None


def _named(folder: Path, stem: str) -> Path:
    """The file with one of the two endings; the first where neither is there."""
    paths = [folder / f"{stem}{ending}" for ending in ENDINGS]
    return next((path for path in paths if path.exists()), paths[0])
