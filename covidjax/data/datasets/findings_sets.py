"""Chest radiographs with several findings each.

chestxray14: Wang et al., CVPR 2017. chexpert: Irvin et al., AAAI 2019. padchest: Bustos et al., Medical Image Analysis
66 (2020). vindr_cxr: Nguyen et al., Scientific Data 9 (2022).
"""

import ast
import collections
import re
from pathlib import Path

import tensorflow_datasets as tfds

from covidjax.data.datasets import findings
from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record
from covidjax.data.findings import ABSENT, UNKNOWN, valued
from covidjax.data.walk import walk
from covidjax.errors import some_of

CHEXPERT_PATIENT = re.compile(r"/(patient\d+)/")
COMMON = 10  # images that a label of PadChest has at least


class ChestXray14(ManualBuilder):
    """NIH ChestX-ray14: 112 120 chest radiographs, 14 findings read out of reports, with the official lists."""

    name = "chestxray14"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download https://nihcc.app.box.com/v/ChestXray-NIHCC and put into MANUAL_DIR: Data_Entry_2017.csv (or "
        "Data_Entry_2017_v2020.csv), train_val_list.txt, test_list.txt, and the images .png in folders of any names "
        "(images_001/images/ to images_012/images/)"
    )
    FINDINGS = (
        "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
        "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
    )  # fmt: skip
    PUBLISHED = {"train": {"": 86524}, "test": {"": 25596}}

    def list_records(self, root: Path) -> Listing:
        listing, files = Listing(), {Path(name).name: root / name for name in walk(root).images}
        split_of = {
            name: split
            for split, table in (("train", "train_val_list.txt"), ("test", "test_list.txt"))
            for name in listing.lines(root / table)
        }
        table = _first(root, "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
        absent, unlisted = [], []
        for number, row in enumerate(listing.table(table, ("image index", "finding labels", "patient id")), start=2):
            name = row["image index"]
            if name not in files:
                absent.append(name)
            elif name not in split_of:
                unlisted.append(name)
            else:
                try:
                    own = findings.named(row["finding labels"], self.FINDINGS, "No Finding")
                except ValueError as error:
                    listing.faults.append(f"{table.name} line {number}: {error}")
                    continue
                patient, split, view = f"nih-{row['patient id']}", split_of[name], row.get("view position", "")
                listing.records.append(Record(name, files[name], "", patient, "nih", split, view=view, findings=own))
        _leave_out(listing, absent, f"images of {table.name} are not below {root}")
        _leave_out(listing, unlisted, "images are in neither official list")
        return listing


class CheXpert(ManualBuilder):
    """CheXpert: 224 316 chest radiographs, 14 findings of reports that are present, absent, uncertain or not mentioned.

    What is not mentioned is unknown, or, in `chexpert/absent`, absent, as many take it. Without test.csv the images of
    valid.csv, which radiologists have read, are the test split, and val is held out from train.
    """

    name = "chexpert"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put CheXpert-v1.0 or CheXpert-v1.0-small (https://stanfordmlgroup.github.io/competitions/chexpert/) into "
        "MANUAL_DIR: train.csv, valid.csv (and test.csv), train/patient00001/study1/view1_frontal.jpg, valid/..."
    )
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("unknown", "absent")]
    FINDINGS = (
        "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
        "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
        "Support Devices",
    )  # fmt: skip
    PUBLISHED = {variant: {"train": {"": 223414}} for variant in ("unknown", "absent")}

    def list_records(self, root: Path) -> Listing:
        found = sorted(root.glob("*/train.csv"))
        listing, root = Listing(), root if (root / "train.csv").exists() or len(found) != 1 else found[0].parent
        tables = {"train": "train", "valid": "test"}
        if (root / "test.csv").exists():
            tables = {"train": "train", "valid": "val", "test": "test"}
        else:
            listing.notes.append("there is no test.csv: valid.csv is the test split, and val is held out from train")
        columns, absent = [name.lower() for name in self.FINDINGS], []
        for table, split in tables.items():
            for number, row in enumerate(listing.table(root / f"{table}.csv", ("path", *columns)), start=2):
                patient = CHEXPERT_PATIENT.search(row["path"])
                _, _, rest = row["path"].partition(f"/{table}/")
                name = f"{table}/{rest}" if rest else row["path"]
                try:
                    if patient is None:
                        raise ValueError(f"the path {row['path']!r} names no patient, as in /patient00001/")
                    own = valued([row[column] for column in columns])
                except ValueError as error:
                    listing.faults.append(f"{table}.csv line {number}: {error}")
                    continue
                if not (root / name).is_file():
                    absent.append(name)
                    continue
                if self.builder_config.name == "absent":
                    own = tuple(ABSENT if value == UNKNOWN else value for value in own)
                view = row.get("ap/pa") or row.get("frontal/lateral", "")
                listing.records.append(
                    Record(name, root / name, "", patient[1], "chexpert", split, view=view, findings=own)
                )
        _leave_out(listing, absent, f"images of the tables are not below {root}")
        return listing


class PadChest(ManualBuilder):
    """PadChest: 160 868 chest radiographs; the findings are the labels of reports that at least ten images have."""

    name = "padchest"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put https://bimcv.cipf.es/bimcv-projects/padchest into MANUAL_DIR: "
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (unpacked) and the images 0/*.png to 54/*.png"
    )

    def kind(self) -> str:
        return "findings"

    def list_records(self, root: Path) -> Listing:
        listing, files = Listing(), {Path(name).name: root / name for name in walk(root).images}
        tables = sorted(root.glob("PADCHEST*.csv")) or [root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"]
        rows, absent, bare = [], [], []
        for number, row in enumerate(listing.table(tables[0], ("imageid", "patientid", "labels")), start=2):
            try:
                own = {str(label).strip() for label in ast.literal_eval(row["labels"] or "[]")} - {""}
            except (ValueError, SyntaxError):
                listing.faults.append(f"{tables[0].name} line {number}: Labels is {row['labels']!r}, no list of texts")
                continue
            if row["imageid"] not in files:
                absent.append(row["imageid"])
            elif not own:
                bare.append(row["imageid"])
            else:
                rows.append((row, own))
        counts = collections.Counter(label for _, own in rows for label in own if label != "normal")
        self.FINDINGS = tuple(sorted(label for label, count in counts.items() if count >= COMMON))
        if rare := sorted(counts.keys() - set(self.FINDINGS)):
            listing.notes.append(
                f"{len(rare)} labels that fewer than {COMMON} images have are left out: {some_of(rare)}"
            )
        if rows and not self.FINDINGS:
            listing.faults.append(f"no label is that of {COMMON} images")
        for row, own in rows:
            name, told = row["imageid"], tuple(int(label in own) for label in self.FINDINGS)
            view = row.get("projection", "")
            patient = f"padchest-{row['patientid']}"
            listing.records.append(Record(name, files[name], "", patient, "padchest", view=view, findings=told))
        _leave_out(listing, absent, f"images of {tables[0].name} are not below {root}")
        _leave_out(listing, bare, "images have no label at all")
        return listing


class VinDrCxr(ManualBuilder):
    """VinDr-CXR: 18 000 chest radiographs (DICOM), 15 000 read by three radiologists, 3 000 for test by consensus.

    A finding is present where more than half of the readers see it, and uncertain where fewer do.
    """

    name = "vindr_cxr"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put https://physionet.org/content/vindr-cxr into MANUAL_DIR: annotations/image_labels_train.csv, "
        "annotations/image_labels_test.csv, train/*.dicom, test/*.dicom"
    )
    PUBLISHED = {"train": {"": 15000}, "test": {"": 3000}}

    def kind(self) -> str:
        return "findings"

    def list_records(self, root: Path) -> Listing:
        listing = Listing()
        for split in ("train", "test"):
            table = root / "annotations" / f"image_labels_{split}.csv"
            rows = listing.table(table, ("image_id", "no finding"))
            names = tuple(name for name in (rows or [{}])[0] if name not in ("image_id", "rad_id", "no finding"))
            if rows and self.FINDINGS and names != self.FINDINGS:
                listing.faults.append(f"{table.name} has other findings than that of train, or in another order")
                continue
            self.FINDINGS = names or self.FINDINGS
            votes: dict[str, list[tuple[int, ...]]] = collections.defaultdict(list)
            for number, row in enumerate(rows, start=2):
                try:
                    votes[row["image_id"]].append(valued([row[name] for name in names]))
                except ValueError as error:
                    listing.faults.append(f"{table.name} line {number}: {error}")
            absent = [name for name in votes if not (root / split / f"{name}.dicom").is_file()]
            _leave_out(listing, absent, f"images of {table.name} are not in {root / split}")
            for name in sorted(votes.keys() - set(absent)):
                path, own = root / split / f"{name}.dicom", findings.voted(votes[name])
                listing.records.append(Record(f"{split}/{name}", path, "", "", "vindr", split, findings=own))
        return listing


def _first(root: Path, *names: str) -> Path:
    return next((root / name for name in names if (root / name).exists()), root / names[0])


def _leave_out(listing: Listing, names: list[str], what: str) -> None:
    """Notes names that are left out; a fault where nothing is left."""
    if names:
        told = listing.notes if listing.records else listing.faults
        told.append(f"{len(names)} {what}, and left out: {some_of(names)}")
