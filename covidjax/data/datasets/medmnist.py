"""MedMNIST+ (Yang et al., Scientific Data 10, 2023): one .npz file of a set, read with NumPy alone."""

import functools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record
from covidjax.data.datasets.stored import png
from covidjax.errors import some_of

KINDS = {"labels": "label", "findings": "findings"}  # of variants
# What the numbers of the labels stand for; of other sets the classes are the numbers.
NAMES = {
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
}  # fmt: skip


class MedMnist(ManualBuilder):
    """A set of MedMNIST+ of two dimensions, with one label an image or `findings`; no patients are published."""

    name = "medmnist"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put one file of https://zenodo.org/records/10519652 into MANUAL_DIR, such as chestmnist_224.npz or "
        "pneumoniamnist_224.npz"
    )

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in KINDS]

    def kind(self) -> str:
        return KINDS[self.builder_config.name]

    def list_records(self, root: Path) -> Listing:
        listing, files = Listing(), sorted(root.glob("*.npz"))
        if len(files) != 1:
            listing.faults.append(f"{root} has {some_of(path.name for path in files) or 'no .npz file'}: put one there")
            return listing
        source = files[0].stem.partition("_")[0]
        names = NAMES.get(source, ())
        for split in ("train", "val", "test"):
            try:
                with np.load(files[0], allow_pickle=False) as arrays:
                    images, labels = (arrays[f"{split}_{kind}"] for kind in ("images", "labels"))
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                listing.faults.append(f"{files[0].name} is no file of MedMNIST+, {split}: {error}")
                return listing
            if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,)) or images.ndim not in (3, 4):
                listing.faults.append(f"{split}_images are {images.dtype}{list(images.shape)}: 2D images are read")
                return listing
            several = labels.shape[1] > 1
            if several != (self.kind() == "findings"):
                other = "medmnist/findings" if several else "medmnist/labels"
                listing.faults.append(f"{files[0].name} has {labels.shape[1]} labels an image: prepare {other}")
                return listing
            names = names or tuple(map(str, range(labels.shape[1] if several else labels.max() + 1)))
            if several:
                self.FINDINGS = names
            else:
                self.CLASSES = names
            for number, own in enumerate(labels.astype(int).tolist()):
                told: dict[str, Any] = {"findings": tuple(own)} if self.FINDINGS else {"label": names[own[0]]}
                image = functools.partial(_encoded, images, number)
                listing.records.append(Record(f"{split}/{number:06d}", image, source=source, split=split, **told))
        return listing


def _encoded(images: np.ndarray, number: int) -> bytes:
    return png(Image.fromarray(images[number]))
