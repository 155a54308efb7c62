"""Soares et al., medRxiv 2020.04.24.20078584: CT slices of patients of hospitals in Sao Paulo."""

from pathlib import Path

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record

FOLDERS = {"noncovid": "non-COVID", "covid": "COVID"}


class SarsCov2Ct(ManualBuilder):
    """CT slices with SARS-CoV-2 (1 252) and without (1 229 in the archive, 1 230 in the paper).

    Neither patients nor a split are published: the split is drawn by image, and slices of one patient are on both
    sides.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download archive.zip of https://www.kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset and unpack it "
        "in MANUAL_DIR, so that MANUAL_DIR/COVID/Covid (1).png and MANUAL_DIR/non-COVID/Non-Covid (1).png are there"
    )
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {"all": {"noncovid": 1229, "covid": 1252}}

    def list_records(self, root: Path) -> Listing:
        """All slices."""
        listing = Listing()
        for label, name in FOLDERS.items():
            for path in listing.images(root / name):
                listing.records.append(Record(f"{name}/{path.name}", path, label, source="sao-paulo"))
        return listing
