"""Sets whose folders or whose one table say everything.

chest_xray_pneumonia: Kermany et al., Cell 172 (2018). darkcovid: Ozturk et al., Computers in Biology and Medicine 121
(2020) 103792. sars_cov2_ct: Soares et al., medRxiv 2020.04.24.20078584. lgg_mri: Buda, Saha, Mazurowski, Computers in
Biology and Medicine 109 (2019). csv: any images with a table.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record, inside
from covidjax.data.examples import SPLITS
from covidjax.data.findings import COLUMN, valued
from covidjax.data.listing import class_order
from covidjax.data.walk import by_folder, walk
from covidjax.files import printable

KERMANY_PATIENT = re.compile(r"(person\d+)_|((?:NORMAL2-)?IM-\d+)-|(?:BACTERIA|VIRUS|NORMAL)-(\d+)-")
NIH_PATIENT = re.compile(r"(\d{8})_\d{3}\.")
LGG_MASK = "_mask.tif"
TABLE, NAMES = "images.csv", "mask_classes.txt"
KINDS = {"labels": "label", "masks": "mask", "findings": "findings"}  # of variants of csv


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
    FOLDERS = {"normal": "NORMAL", "pneumonia": "PNEUMONIA"}
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {"train": {"normal": 1349, "pneumonia": 3883}, "test": {"normal": 234, "pneumonia": 390}}

    def list_records(self, root: Path) -> Listing:
        listing, root = Listing(), inside(root, "chest_xray")
        folders = {"train": "train", "test": "test"} | ({"val": "train"} if (root / "val").is_dir() else {})
        for folder, split in folders.items():
            for label, name in self.FOLDERS.items():
                for path in listing.images(root / folder / name):
                    match = KERMANY_PATIENT.match(path.name)
                    patient = (match[3] or f"{split}-{match[1] or match[2]}") if match else ""
                    full = f"{split}/{name}/{path.name}"
                    listing.records.append(Record(full, path, label, patient, "guangzhou", split))
        return listing


class Darkcovid(ManualBuilder):
    """Chest radiographs of DarkCovidNet: 500 without findings, 500 with pneumonia (both NIH), 125 with COVID-19.

    The patient is the number in the names of NIH, and for COVID-19 that of the ieee8023 table, if it is given.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "git clone https://github.com/muhammedtalo/COVID-19 and put its folder 'X-Ray Image DataSet' (Covid-19, "
        "No_findings, Pneumonia) into MANUAL_DIR; for the patients with COVID-19 also metadata.csv of "
        "https://github.com/ieee8023/covid-chestxray-dataset"
    )
    FOLDERS = {"no_findings": "No_findings", "pneumonia": "Pneumonia", "covid19": "Covid-19"}
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {"all": {"no_findings": 500, "pneumonia": 500, "covid19": 125}}

    def list_records(self, root: Path) -> Listing:
        listing, table = Listing(), root / "metadata.csv"
        rows = listing.table(table, ("patientid", "filename")) if table.exists() else []
        patients = {Path(row["filename"]).stem: f"cohen-{row['patientid']}" for row in rows}
        if not table.exists():
            listing.notes.append(f"the patients with COVID-19 are unknown: put metadata.csv of ieee8023 into {root}")
        for label, name in self.FOLDERS.items():
            for path in listing.images(inside(root, "X-Ray Image DataSet") / name):
                nih = NIH_PATIENT.match(path.name)
                patient = f"nih-{nih[1]}" if nih else patients.get(path.stem, "")
                listing.records.append(Record(f"{name}/{path.name}", path, label, patient, "nih" if nih else "cohen"))
        return listing


class SarsCov2Ct(ManualBuilder):
    """CT slices with SARS-CoV-2 (1 252) and without (1 229 in the archive, 1 230 in the paper).

    Neither patients nor a split are published: the split is drawn by image, and slices of one patient are on both
    sides.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download archive.zip of https://www.kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset and unpack it "
        "in MANUAL_DIR, so that MANUAL_DIR/COVID/Covid (1).png and MANUAL_DIR/non-COVID/Non-Covid (1).png are there"
    )
    FOLDERS = {"noncovid": "non-COVID", "covid": "COVID"}
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {"all": {"noncovid": 1229, "covid": 1252}}

    def list_records(self, root: Path) -> Listing:
        listing = Listing()
        for label, name in self.FOLDERS.items():
            for path in listing.images(root / name):
                listing.records.append(Record(f"{name}/{path.name}", path, label, source="sao-paulo"))
        return listing


class LggMri(ManualBuilder):
    """Slices of brain MRI (pre-contrast, FLAIR, post-contrast as the three channels) of 110 patients with glioma.

    Masks: 0 background, 1 FLAIR abnormality. The split is drawn by patient; the source is the institution in the
    name of the patient.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download archive.zip of https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation and unpack it in "
        "MANUAL_DIR, so that MANUAL_DIR/kaggle_3m/TCGA_.../TCGA_..._1.tif and TCGA_..._1_mask.tif are there"
    )
    MASK_CLASSES = ("background", "abnormality")
    PUBLISHED = {"all": {"": 3929}}

    def list_records(self, root: Path) -> Listing:
        listing, root = Listing(), inside(root, "kaggle_3m")
        folders = sorted(path for path in root.glob("TCGA_*") if path.is_dir())
        if not folders:
            listing.images(root, (".tif",))
            listing.faults.append(f"{root} has no folders TCGA_...")
        for folder in folders:
            files = listing.images(folder, (".tif",))
            masks = {path.name for path in files if path.name.endswith(LGG_MASK)}
            images = [path for path in files if path.name not in masks]
            for path in images:
                mask = path.with_name(path.stem + LGG_MASK)
                if mask.name not in masks:
                    listing.faults.append(f"{folder.name}/{path.name} has no mask {mask.name}")
                    continue
                name, source = f"{folder.name}/{path.name}", folder.name.split("_")[1]
                listing.records.append(Record(name, path, patient=folder.name, source=source, mask=mask))
            alone = masks - {path.stem + LGG_MASK for path in images}
            listing.faults += [f"{folder.name}/{name} has no image" for name in sorted(alone)]
        if folders and len(folders) != 110:
            listing.notes.append(f"{len(folders)} patients; published are 110")
        return listing


class Csv(ManualBuilder):
    """Images of a table: `labels` with a class each, `masks` with a mask each, or `findings` with any of several."""

    name = "csv"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"write MANUAL_DIR/{TABLE} with the columns path (below MANUAL_DIR), label (a name; for csv/masks instead "
        "mask, a path; for csv/findings one column for each finding, finding:NAME, of 1, 0, -1 for uncertain, or "
        "nothing for unknown) and, if you know them, patient, source and split (train, val, test; in all rows or in "
        "none); "
        f"the names of more than two classes of masks go into MANUAL_DIR/{NAMES}, one a line, the background first"
    )
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in KINDS]

    def kind(self) -> str:
        return KINDS[self.builder_config.name]

    def list_records(self, root: Path) -> Listing:
        listing, kind = Listing(), self.kind()
        rows = listing.table(root / TABLE, ("path",) if kind == "findings" else ("path", kind))
        named = [name for name in (rows or [{}])[0] if name.startswith(COLUMN)]
        if kind == "findings":
            self.FINDINGS = tuple(name.removeprefix(COLUMN).strip() for name in named)
            if rows and not named:
                listing.faults.append(f"{TABLE} has no column {COLUMN}NAME")
        found = walk(root)
        on_disk, unnamed = {name: found.paths.get(name, name) for name in found.images}, set(found.images)
        if len({bool(row.get("split")) for row in rows}) > 1:
            listing.faults.append(f"{TABLE} has rows with a split and rows without one")
        for number, row in enumerate(rows, start=2):
            keys = ("path", "mask") if kind == "mask" else ("path",)
            unnamed.difference_update(printable(row[key]) for key in keys)
            paths = {key: _on_disk(root, row[key], on_disk) for key in keys}
            faults = [f"there is no {key}" for key in ("path", kind) if not row.get(key, "there")]
            faults += [f"{row[key]} is not in {root}" for key in keys if row[key] and not paths[key].is_file()]
            if row.get("split", "") not in ("", *SPLITS):
                faults.append(f"split is {row['split']!r}; allowed: train, val, test")
            told: dict[str, Any] = {"label": row["label"]} if kind == "label" else {}
            try:
                told |= {"findings": valued([row[name] for name in named])} if kind == "findings" else {}
            except ValueError as error:
                faults.append(str(error))
            listing.faults += [f"{TABLE} line {number}: {fault}" for fault in faults]
            if not faults:
                patient, source, split = (row.get(key, "") for key in ("patient", "source", "split"))
                image, mask = paths["path"], paths.get("mask")
                listing.records.append(
                    Record(row["path"], image, patient=patient, source=source, split=split, mask=mask, **told)
                )
        listing.notes += found.notes
        if unnamed and rows:
            left = sorted(unnamed)
            listing.notes.append(f"{TABLE} does not name {len(left)} of the images that are there: {by_folder(left)}")
        if kind == "mask":
            names = listing.lines(root / NAMES) if (root / NAMES).exists() else ("background", "foreground")
            self.MASK_CLASSES = tuple(names)
        elif kind == "label":
            self.CLASSES = class_order(printable(record.label) for record in listing.records)
        return listing


def _on_disk(root: Path, name: str, on_disk: Mapping[str, str]) -> Path:
    """The file of a name in the table, which may be spelled with other code points, or escaped."""
    path = root / name
    return path if path.is_file() else root / on_disk.get(printable(name), name)
