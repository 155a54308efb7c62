"""Sets of chest radiographs that are made of several collections: ieee8023, Figure 1, Actualmed and RSNA.

COVIDx as of April 2020: Wang, Lin, Wong, Scientific Reports 10, 19549, with the validation set of Ljung et al.
RSNA and ieee8023: Wang, Liu, Xu 2020.
"""

import collections
import dataclasses
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record
from covidjax.data.examples import SPLITS
from covidjax.data.formats.read import SUFFIXES
from covidjax.errors import some_of

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
CLASSES = ("normal", "pneumonia", "covid19")
# The lists of COVIDx: their splits, and their words for the classes.
LISTS = {
    "train_COVIDx2.txt": "train",
    "test_COVIDx2.txt": "test",
    "val_rsna_normal_reconstructed.txt": "val",
    "val_rsna_pneumonia_reconstructed.txt": "val",
}
LABELS = {"normal": "normal", "pneumonia": "pneumonia", "COVID-19": "covid19"}
# Those of val are part of the package: the patients of rsna_test_patients_{normal,pneumonia}.npy of the paper's
# repository less those of its test list. Of pneumonia they are 493, and the paper has 494.
PACKAGED = Path(__file__).parent / "covidx_lists"
VAL_COVID = 71
# Source and class: images of the paper's train and test, of RSNA and ieee8023.
PAPER = {
    ("rsna", "normal"): (7966, 885),
    ("rsna", "pneumonia"): (8603, 952),
    ("cohen", "pneumonia"): (17, 4),
    ("cohen", "covid19"): (128, 12),
}
SEED = 0


def _counts(*numbers: int) -> dict[str, int]:
    return dict(zip(CLASSES, numbers, strict=True))


class Covidx(ManualBuilder):
    """COVIDxPLUS and COVIDxMINI: chest radiographs, normal, pneumonia or COVID-19, by the published lists.

    `mini` is drawn from `plus` by a fixed seed, class by class. The lists name no COVID-19 image for validation: as
    many as the paper has are drawn by a fixed seed from images of the ieee8023 collection that no list names, of
    patients that no list names. The lists of val are reconstructed and come with covidjax; files of the same names in
    covidx_lists replace them.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"put into MANUAL_DIR: {'; '.join(INSTRUCTIONS.values())}; and as covidx_lists dataset_specifications of "
        "https://github.com/hkindbom/Transfer-Learning-COVID-19-Detection with train_COVIDx2.txt and "
        "test_COVIDx2.txt (each may be .gz); the two lists of val, which are published nowhere, come with covidjax"
    )
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plus", "mini")]
    CLASSES = CLASSES
    PUBLISHED = {
        "plus": {"train": _counts(7966, 5451, 152), "val": _counts(785, 494, 71), "test": _counts(100, 100, 31)},
        "mini": {"train": _counts(200, 200, 152), "val": _counts(100, 100, 71), "test": _counts(100, 100, 31)},
    }

    def list_records(self, root: Path) -> Listing:
        listing, files = Listing(), {source: _files_of(root, source) for source in FOLDERS}
        absent, named = collections.defaultdict(list), set()
        for table, split in LISTS.items():
            path = root / "covidx_lists" / table
            is_own = split != "val" or path.exists() or path.with_name(f"{table}.gz").exists()
            for line in listing.lines(path if is_own else PACKAGED / table):
                patient, _, rest = line.partition(" ")
                file, _, label = rest.partition(" ")
                if label.split(" ")[0] not in LABELS:
                    listing.faults.append(f"{table} has the line {line!r}, which is no patient, file and label")
                    continue
                source = next((own for own, paths in files.items() if _key(own, file) in paths), "")
                named |= {file, f"{source}-{patient}" if source else ""}
                if source:
                    path, label = files[source][_key(source, file)], LABELS[label.split(" ")[0]]
                    listing.records.append(_record(source, path, f"{source}-{patient}", label, split))
                else:
                    absent[table].append(file)
        missing = [folder for folder in FOLDERS.values() if not (root / folder).is_dir()]
        for table, names in absent.items():
            if missing:
                what = f"absent, such as {names[0]}, and so are the folders {', '.join(missing)} of {root}"
            else:
                what = f"in none of the collections: {some_of(names)}"
            listing.faults.append(f"{len(names)} images of {table} are {what}")
        listing.records += _more_covid(listing, root, files["cohen"], named)
        if self.builder_config.name == "mini":
            listing.records = _mini(listing.records)
        return listing


class RsnaCohen(ManualBuilder):
    """Chest radiographs, normal, pneumonia or COVID-19, of the RSNA challenge and the ieee8023 collection.

    The paper's 9 555 images of pneumonia from RSNA are the boxes around opacities in 6 012 images. `boxes` has an
    example for each box, as the paper; `images` has each image once. Test is a tenth of each source and class, drawn
    by patient with a fixed seed: the paper's own lists are not published.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = f"put into MANUAL_DIR: {INSTRUCTIONS['cohen']}; {INSTRUCTIONS['rsna']}"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("boxes", "images")]
    CLASSES = CLASSES
    PUBLISHED = {  # the sums of PAPER, and what is known of the images behind them
        "boxes": {"train": _counts(7966, 8620, 128), "test": _counts(885, 956, 12)},
        "images": {"all": _counts(8851, 6033, 140)},
    }

    def list_records(self, root: Path) -> Listing:
        listing, boxes = Listing(), self.builder_config.name == "boxes"
        absent: dict[str, list[str]] = collections.defaultdict(list)
        groups: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
        files = {source: _files_of(root, source) for source in ("rsna", "cohen")}
        for source, name, patient, label in _rows(listing, root):
            if path := files[source].get(name):
                groups[source, label].append(_record(source, path, patient, label))
            else:
                absent[source].append(name)
        for source, names in absent.items():
            folder = root / FOLDERS[source]
            shown = some_of(dict.fromkeys(names)) if folder.is_dir() else f"{names[0]}, ... (there is no such folder)"
            listing.faults.append(f"{len(set(names))} images are not in {folder}: {shown}")
        for key, group in groups.items():
            listing.records += _split(_boxes(group) if boxes else list({r.name: r for r in group}.values()), PAPER[key])
        extra = sum(len(group) - len({record.name for record in group}) for group in groups.values())
        if extra and boxes:
            listing.notes.append(f"{extra} examples are further boxes of the same images, as in the paper")
        return listing


def findings(listing: Listing, root: Path) -> list[tuple[str, str, str]]:
    """File, patient and class of the frontal radiographs of ieee8023 with COVID-19 or another pneumonia, as listed."""
    found = {}
    for row in listing.table(root / COHEN / "metadata.csv", ("patientid", "finding", "view", "filename")):
        label = FINDINGS.get(row["finding"].split(",")[0].split("/")[-1].strip(), "")
        if label and row["view"] in FRONTAL:
            found[row["filename"]] = (row["filename"], f"cohen-{row['patientid']}", label)
    return list(found.values())


def _key(source: str, file: str) -> str:
    """The name by which a collection knows an image: its file or, of RSNA, the stem of it."""
    return Path(file).stem if source == "rsna" else file


def _files_of(root: Path, source: str) -> dict[str, Path]:
    folder = root / FOLDERS[source]
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {_key(source, path.name): path for path in paths if path.suffix.lower() in SUFFIXES}


def _record(source: str, path: Path, patient: str, label: str, split: str = "") -> Record:
    return Record(f"{source}/{path.name}", path, label, patient, source, split)


def _more_covid(listing: Listing, root: Path, files: dict[str, Path], named: set[str]) -> list[Record]:
    """COVID-19 images for validation that no list names."""
    if not (root / COHEN / "metadata.csv").exists():
        listing.faults.append(f"{root / COHEN / 'metadata.csv'} does not exist: validation images are drawn with it")
        return []
    rest = [
        _record("cohen", files[file], patient, label, "val")
        for file, patient, label in findings(listing, root)
        if label == "covid19" and file in files and not {file, patient} & named
    ]
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(rest))[:VAL_COVID])
    listing.notes.append(
        f"the {len(chosen)} COVID-19 images of val are ours, drawn from {len(rest)}: no list names them"
    )
    return [rest[index] for index in chosen]


def _mini(records: list[Record]) -> list[Record]:
    """The published number of images of each split and class; a class that is taken whole does not move the others."""
    chosen = []
    for split, counts in Covidx.PUBLISHED["mini"].items():
        for number, (label, count) in enumerate(counts.items()):
            part = sorted((r for r in records if (r.split, r.label) == (split, label)), key=lambda record: record.name)
            drawn = np.random.default_rng((SEED, number)).permutation(len(part))[:count]
            chosen += [part[index] for index in drawn]
    return sorted(chosen, key=lambda record: (SPLITS.index(record.split), record.name))


def _rows(listing: Listing, root: Path) -> list[tuple[str, str, str, str]]:
    """Source, file, patient and class, with a row for each box."""
    tables = (("detailed_class_info", "class", "Normal", "normal"), ("train_labels", "target", "1", "pneumonia"))
    rows = [
        ("rsna", row["patientid"], f"rsna-{row['patientid']}", label)
        for table, column, value, label in tables
        for row in listing.table(root / RSNA / f"stage_2_{table}.csv", ("patientid", column))
        if row[column] == value
    ]
    return rows + [("cohen", *found) for found in findings(listing, root)]


def _boxes(group: list[Record]) -> list[Record]:
    """The records with a number behind the name of every further box."""
    seen, numbered = collections.Counter[str](), []
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
