"""COVIDx as of April 2020 (Wang, Lin, Wong, Scientific Reports 10, 19549), with the validation set of Ljung et al."""

import collections
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.cohen import COHEN, FOLDERS, INSTRUCTIONS, files_of, findings, image_of
from covidjax.data.datasets.records import Counts, Listing, Record
from covidjax.data.splits import balanced_subset

LABELS = {"normal": "normal", "pneumonia": "pneumonia", "COVID-19": "covid19"}
LISTS = {
    "train_COVIDx2.txt": "train",
    "test_COVIDx2.txt": "test",
    "val_rsna_normal_reconstructed.txt": "val",
    "val_rsna_pneumonia_reconstructed.txt": "val",
}
VAL_COVID = 71
SEED = 0


def _counts(normal: int, pneumonia: int, covid19: int) -> dict[str, int]:
    return {"normal": normal, "pneumonia": pneumonia, "covid19": covid19}


PUBLISHED = {
    "plus": {"train": _counts(7966, 5451, 152), "val": _counts(785, 494, 71), "test": _counts(100, 100, 31)},
    "mini": {"train": _counts(200, 200, 152), "val": _counts(100, 100, 71), "test": _counts(100, 100, 31)},
}


class Covidx(ManualBuilder):
    """COVIDxPLUS and COVIDxMINI: chest radiographs, normal, pneumonia or COVID-19, by the published lists.

    `mini` is drawn from `plus` by a fixed seed, class by class. The lists name no COVID-19 image for validation: as
    many as the paper has are drawn by a fixed seed from images of the ieee8023 collection that no list names, of
    patients that no list names.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"put into MANUAL_DIR: {'; '.join(INSTRUCTIONS.values())}; and as covidx_lists the lists {', '.join(LISTS)} "
        "(each may be .gz; the first two are dataset_specifications of "
        "https://github.com/hkindbom/Transfer-Learning-COVID-19-Detection)"
    )
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in PUBLISHED]
    CLASSES = tuple(LABELS.values())

    def published(self) -> Counts:
        """The counts of the paper's two tables."""
        return PUBLISHED[self.builder_config.name]

    def list_records(self, root: Path) -> Listing:
        """The images that the lists name, and the drawn validation images."""
        listing = Listing()
        files = {source: files_of(root, source) for source in FOLDERS}
        absent = collections.defaultdict(list)
        named: set[str] = set()
        for table, split in LISTS.items():
            for line in listing.lines(root / "covidx_lists" / table):
                patient, _, rest = line.partition(" ")
                file, _, label = rest.partition(" ")
                if label.split(" ")[0] not in LABELS:
                    listing.faults.append(f"{table} has the line {line!r}, which is no patient, file and label")
                    continue
                record = _find(files, patient, file, LABELS[label.split(" ")[0]], split)
                named |= {file, record.patient if record else ""}
                if record:
                    listing.records.append(record)
                else:
                    absent[table].append(file)
        for table, names in absent.items():
            listing.faults.append(_absence(root, table, names))
        listing.records += _more_covid(listing, root, files["cohen"], named)
        if self.builder_config.name == "mini":
            listing.records = _mini(listing.records)
        return listing


def _find(files: dict[str, dict[str, Path]], patient: str, file: str, label: str, split: str) -> Record | None:
    for source, paths in files.items():
        path = paths.get(Path(file).stem if source == "rsna" else file)
        if path:
            return Record(f"{source}/{path.name}", image_of(path), label, f"{source}-{patient}", source, split)
    return None


def _absence(root: Path, table: str, names: list[str]) -> str:
    missing = [folder for folder in FOLDERS.values() if not (root / folder).is_dir()]
    if missing:
        return (
            f"{len(names)} images of {table} are absent, such as {names[0]}, and so are the folders "
            f"{', '.join(missing)} of {root}"
        )
    return f"{len(names)} images of {table} are in none of the collections: {', '.join(names)}"


def _more_covid(listing: Listing, root: Path, files: dict[str, Path], named: set[str]) -> list[Record]:
    """COVID-19 images for validation that no list names."""
    if not (root / COHEN / "metadata.csv").exists():
        listing.faults.append(f"{root / COHEN / 'metadata.csv'} does not exist: validation images are drawn with it")
        return []
    rest = [found for found in findings(listing, root) if found.label == "covid19" and found.file in files]
    rest = [found for found in rest if found.file not in named and found.patient not in named]
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(rest))[:VAL_COVID])
    listing.notes.append(
        f"the {len(chosen)} COVID-19 images of val are ours, drawn from {len(rest)}: no list names them"
    )
    drawn = [rest[index] for index in chosen]
    return [
        Record(f"cohen/{found.file}", files[found.file], found.label, found.patient, "cohen", "val") for found in drawn
    ]


def _mini(records: list[Record]) -> list[Record]:
    chosen = []
    for split, counts in PUBLISHED["mini"].items():
        part = sorted((record for record in records if record.split == split), key=lambda record: record.name)
        labels = [list(counts).index(record.label) for record in part]
        chosen += [part[index] for index in balanced_subset(labels, list(counts.values()), SEED)]
    return chosen
