"""Kermany et al., Cell 172 (2018): chest radiographs of children from Guangzhou, normal or pneumonia."""

import re
from pathlib import Path

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record, inside

FOLDERS = {"normal": "NORMAL", "pneumonia": "PNEUMONIA"}
PATIENT = re.compile(r"(person\d+)_|((?:NORMAL2-)?IM-\d+)-|(?:BACTERIA|VIRUS|NORMAL)-(\d+)-")


class ChestXrayPneumonia(ManualBuilder):
    """Chest radiographs of children, normal or pneumonia, with the published train and test (doi 10.17632/rscbjbr9sj).

    The 16 images that the Kaggle archive calls val are of train's patients and belong to the published train, where
    they are put back. The patient is read off the file name; numbers of versions 1 and 2 begin anew in test.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download ChestXRay2017.zip of https://data.mendeley.com/datasets/rscbjbr9sj, or archive.zip of "
        "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia, and unpack it in MANUAL_DIR, so that "
        "MANUAL_DIR/chest_xray/train/NORMAL, train/PNEUMONIA, test/NORMAL, test/PNEUMONIA (and val/..., if it has "
        "them) hold the .jpeg files"
    )
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {"train": {"normal": 1349, "pneumonia": 3883}, "test": {"normal": 234, "pneumonia": 390}}

    def list_records(self, root: Path) -> Listing:
        """Published train and test."""
        listing, root = Listing(), inside(root, "chest_xray")
        folders = {"train": "train", "test": "test"} | ({"val": "train"} if (root / "val").is_dir() else {})
        for folder, split in folders.items():
            for label, name in FOLDERS.items():
                for path in listing.images(root / folder / name):
                    listing.records.append(
                        Record(f"{split}/{name}/{path.name}", path, label, _patient(path, split), "guangzhou", split)
                    )
        return listing


def _patient(path: Path, split: str) -> str:
    match = PATIENT.match(path.name)
    if not match:
        return ""
    return match[3] or f"{split}-{match[1] or match[2]}"
