"""The collections of radiographs that several sets are made of: ieee8023, Figure 1, Actualmed and RSNA."""

import dataclasses
from pathlib import Path

from covidjax.data.datasets.dicom import image_in_dicom
from covidjax.data.datasets.records import Content, Listing
from covidjax.data.picture import SUFFIXES

COHEN = "covid-chestxray-dataset"
RSNA = "rsna-pneumonia-detection-challenge"
# Source: its folder of images.
FOLDERS = {
    "cohen": f"{COHEN}/images",
    "figure1": "Figure1-COVID-chestxray-dataset/images",
    "actualmed": "Actualmed-COVID-chestxray-dataset/images",
    "rsna": f"{RSNA}/stage_2_train_images",
}
INSTRUCTIONS = {
    "cohen": f"git clone https://github.com/ieee8023/covid-chestxray-dataset (images/ and metadata.csv) as {COHEN}",
    "figure1": "git clone https://github.com/agchung/Figure1-COVID-chestxray-dataset",
    "actualmed": "git clone https://github.com/agchung/Actualmed-COVID-chestxray-dataset",
    "rsna": (
        "all of https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, unpacked, as "
        f"{RSNA} (stage_2_train_images/*.dcm or *.png, stage_2_train_labels.csv, stage_2_detailed_class_info.csv)"
    ),
}
FRONTAL = ("PA", "AP", "AP Supine", "AP semi erect", "AP erect")
# The first finding of an image, without the kinds above it that later versions of the table write.
FINDINGS = {"COVID-19": "covid19"} | dict.fromkeys(
    ("SARS", "MERS", "MERS-CoV", "Streptococcus", "Klebsiella", "Chlamydophila", "Legionella"), "pneumonia"
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A frontal radiograph of the ieee8023 collection."""

    file: str
    patient: str
    label: str


def findings(listing: Listing, root: Path) -> list[Finding]:
    """The frontal radiographs with COVID-19 or another pneumonia, in the order of the collection's table."""
    rows = listing.table(root / COHEN / "metadata.csv", ("patientid", "finding", "view", "filename"))
    found = []
    for row in rows:
        label = FINDINGS.get(row["finding"].split(",")[0].split("/")[-1].strip(), "")
        if label and row["view"] in FRONTAL:
            found.append(Finding(row["filename"], f"cohen-{row['patientid']}", label))
    return list({finding.file: finding for finding in found}.values())


def image_of(path: Path) -> Content:
    """The image of a file; that of a DICOM file is what `image_in_dicom` makes of it."""
    return (lambda: image_in_dicom(path.read_bytes())) if path.suffix.lower() == ".dcm" else path


def files_of(root: Path, source: str) -> dict[str, Path]:
    """The images of a collection by name; those of RSNA by their stem."""
    folder = root / FOLDERS[source]
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    suffixes = (*SUFFIXES, ".dcm")
    return {path.stem if source == "rsna" else path.name: path for path in paths if path.suffix.lower() in suffixes}
