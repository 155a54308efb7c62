"""Wang, Liu, Xu 2020: radiographs of the RSNA challenge and of the ieee8023 collection, split 9 to 1."""

import collections
import dataclasses
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.cohen import FOLDERS, INSTRUCTIONS, RSNA, files_of, findings, image_of
from covidjax.data.datasets.records import Counts, Listing, Record

# Source and class: images of the paper's train and test.
PAPER = {
    ("rsna", "normal"): (7966, 885),
    ("rsna", "pneumonia"): (8603, 952),
    ("cohen", "pneumonia"): (17, 4),
    ("cohen", "covid19"): (128, 12),
}
UNIQUE_PNEUMONIA = 6012
SEED = 0


class RsnaCohen(ManualBuilder):
    """Chest radiographs, normal, pneumonia or COVID-19, of the RSNA challenge and the ieee8023 collection.

    The paper's 9 555 images of pneumonia from RSNA are the boxes around opacities in 6 012 images. `boxes` has an
    example for each box, as the paper; `images` has each image once. Test is a tenth of each source and class, drawn
    by patient with a fixed seed: the paper's own lists are not published.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = f"put into MANUAL_DIR: {INSTRUCTIONS['cohen']}; {INSTRUCTIONS['rsna']}"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("boxes", "images")]
    CLASSES = ("normal", "pneumonia", "covid19")

    def published(self) -> Counts:
        """The paper's tables, or what is known of the images behind them."""
        train, test = (
            {label: sum(counts[part] for (_, name), counts in PAPER.items() if name == label) for label in self.CLASSES}
            for part in (0, 1)
        )
        if self.builder_config.name == "boxes":
            return {"train": train, "test": test}
        return {"all": {"normal": train["normal"] + test["normal"], "pneumonia": UNIQUE_PNEUMONIA + 21, "covid19": 140}}

    def list_records(self, root: Path) -> Listing:
        """All images, with their boxes or without."""
        listing = Listing()
        absent: dict[str, list[str]] = collections.defaultdict(list)
        groups: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
        files = {source: files_of(root, source) for source in ("rsna", "cohen")}
        for source, name, patient, label in _rows(listing, root):
            path = files[source].get(name)
            if path is None:
                absent[source].append(name)
                continue
            group = groups[source, label]
            group.append(Record(f"{source}/{path.name}", image_of(path), label, patient, source))
        for source, names in absent.items():
            folder = root / FOLDERS[source]
            shown = ", ".join(dict.fromkeys(names)) if folder.is_dir() else f"{names[0]}, ... (there is no such folder)"
            listing.faults.append(f"{len(set(names))} images are not in {folder}: {shown}")
        for key, group in groups.items():
            boxes = _boxes(group) if self.builder_config.name == "boxes" else list({r.name: r for r in group}.values())
            listing.records += _split(boxes, PAPER[key])
        extra = sum(len(group) - len({record.name for record in group}) for group in groups.values())
        if extra and self.builder_config.name == "boxes":
            listing.notes.append(f"{extra} examples are further boxes of the same images, as in the paper")
        return listing


def _rows(listing: Listing, root: Path) -> list[tuple[str, str, str, str]]:
    """Source, file, patient and class, with a row for each box."""
    rows = []
    for row in listing.table(root / RSNA / "stage_2_detailed_class_info.csv", ("patientid", "class")):
        if row["class"] == "Normal":
            rows.append(("rsna", row["patientid"], f"rsna-{row['patientid']}", "normal"))
    for row in listing.table(root / RSNA / "stage_2_train_labels.csv", ("patientid", "target")):
        if row["target"] == "1":
            rows.append(("rsna", row["patientid"], f"rsna-{row['patientid']}", "pneumonia"))
    return rows + [("cohen", found.file, found.patient, found.label) for found in findings(listing, root)]


def _boxes(group: list[Record]) -> list[Record]:
    """The records with a number behind the name of every further box."""
    seen: collections.Counter[str] = collections.Counter()
    numbered = []
    for record in group:
        seen[record.name] += 1
        box = f" (box {seen[record.name]})" if seen[record.name] > 1 else ""
        numbered.append(dataclasses.replace(record, name=record.name + box))
    return numbered


def _split(group: list[Record], paper: tuple[int, int]) -> list[Record]:
    """Test takes whole patients in a drawn order, as long as it has no more than the paper's share."""
    room = round(len(group) * paper[1] / sum(paper))
    sizes = collections.Counter(record.patient for record in group)
    patients = sorted(sizes)
    test = set()
    for index in np.random.default_rng(SEED).permutation(len(patients)):
        if sizes[patients[index]] <= room:
            test.add(patients[index])
            room -= sizes[patients[index]]
    return [dataclasses.replace(record, split="test" if record.patient in test else "train") for record in group]
