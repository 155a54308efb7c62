"""medicalsegmentation.com: CT of COVID-19 with masks of ground glass, consolidation and pleural effusion."""

import functools
from pathlib import Path

import nibabel
import numpy as np
import tensorflow_datasets as tfds
from nibabel.filebasedimages import ImageFileError
from PIL import Image

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Counts, Listing, Record
from covidjax.data.datasets.stored import png
from covidjax.data.picture import BadImageError

ENDINGS = (".nii.gz", ".nii")
WINDOW = (-1350.0, 150.0)  # Hounsfield units: the lung window, width 1500 around -600


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
    MASK_CLASSES = ("background", "ground_glass", "consolidation", "pleural_effusion")

    def published(self) -> Counts:
        """The slices of either variant."""
        return {"all": {"": 100 if self.builder_config.name == "slices" else 829}}

    def list_records(self, root: Path) -> Listing:
        """Every slice of the volumes; only their headers are read."""
        listing = Listing()
        if self.builder_config.name == "slices":
            images = [_named(root, "tr_im")]
            pairs = [("tr_im", images[0], _named(root, "tr_mask"), "")]
        else:
            images = listing.images(root / "rp_im", ENDINGS)
            pairs = [(_stem(path), path, _named(root / "rp_msk", _stem(path)), f"rp-{_stem(path)}") for path in images]
            if images and len(images) != 9:
                listing.notes.append(f"{len(images)} volumes; published are 9")
        source = "sirm" if self.builder_config.name == "slices" else "radiopaedia"
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
            raise BadImageError(f"{self.path} is damaged: {error}") from error
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


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
