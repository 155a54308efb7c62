"""How many images public data sets have, and in which splits, as their papers say."""

import csv as tables
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.commands import read_table, user_error
from tests.data.images import real_data

pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
pytest.importorskip("nibabel", reason="nibabel is not installed: make setup installs it")

from covidjax.data.datasets import radiographs
from covidjax.data.datasets.prepare import load_builder, prepare
from covidjax.data.datasets.records import Listing, Record
from tests.data import trees
from tests.data.test_prepare import by_patient, notes, records


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("chest_xray_pneumonia", {"train": 5232, "test": 624}),
        ("covid_ct", {"all": 746, "train": 425, "val": 118, "test": 203}),
        ("chest_xray_pneumonia_printed", {"train": 5209, "val": 23, "test": 624}),
        ("covid_ct_printed", {"train": 400, "val": 98, "test": 200}),
        ("sars_cov2_ct_printed", {"train": 1984, "val": 248, "test": 249}),
        ("covidx/plus", {"train": 13569, "val": 1350, "test": 231}),
        ("covidx/mini", {"train": 552, "val": 271, "test": 231}),
        ("rsna_cohen/boxes", {"train": 16714, "test": 1853}),
        ("darkcovid", {"all": 1125}),
        ("sars_cov2_ct", {"all": 2481}),
    ],
)
def test_published_counts_are_those_of_the_papers(name: str, totals: dict[str, int]) -> None:
    builder, _, variant = name.partition("/")
    published = load_builder(builder)(data_dir="unused", config=variant or None).published()
    assert {split: sum(counts.values()) for split, counts in published.items()} == totals


@pytest.mark.parametrize("name", ["chest_xray_pneumonia_printed", "covid_ct_printed", "sars_cov2_ct_printed"])
def test_a_printed_split_of_a_complete_set_has_the_papers_counts_and_is_drawn_alike_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = load_builder(name)(data_dir=tmp_path)
    parent: Any = type(builder).__mro__[1]
    parts = {"": parent.PUBLISHED["all"]} if "all" in parent.PUBLISHED else parent.PUBLISHED
    everything = [
        Record(f"{split}/{label}/{n}", Path(), label, split=split)
        for split, counts in parts.items()
        for label, count in counts.items()
        for n in range(count)
    ]
    drawn = []
    for order in (1, -1):
        monkeypatch.setattr(parent, "list_records", lambda self, root, order=order: Listing(everything[::order]))
        drawn.append(builder.list_records(tmp_path))
    found = Counter((record.split, record.label) for record in drawn[0].records)
    printed = {(split, label): n for split, counts in builder.PUBLISHED.items() for label, n in counts.items()}
    assert found == printed
    assert sorted(drawn[0].records, key=lambda one: one.name) == sorted(drawn[1].records, key=lambda one: one.name)
    assert "drawn by a fixed seed" in drawn[0].notes[-1]


def test_covidx_takes_its_lists_of_val_from_the_package_where_the_folder_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [table for table, split in radiographs.LISTS.items() if split == "val"]
    packaged = {name: Listing().lines(radiographs.PACKAGED / name) for name in names}
    assert [len(set(lines)) for lines in packaged.values()] == [785, 493]
    root = trees.make("covidx/plus", tmp_path / "manual")
    own = {name: (root / "covidx_lists" / name).rename(tmp_path / name) for name in names}
    message = user_error(prepare, "covidx/plus", root, tmp_path / "data")
    assert "785 images of val_rsna_normal_reconstructed.txt are in none of the collections" in message
    monkeypatch.setattr(radiographs, "PACKAGED", own[names[0]].parent)
    assert len(records(prepare("covidx/plus", root, tmp_path / "data"))["val"]) == 12


def test_the_real_lists_of_covidx_have_the_published_counts(tmp_path: Path) -> None:
    shutil.copytree(real_data("covidx_lists"), tmp_path / "covidx_lists")
    message = user_error(prepare, "covidx/plus", tmp_path, tmp_path / "data")
    for part in ("13569 images of train_COVIDx2.txt", "231 images of test", "785 images of val_rsna_n", "493 images"):
        assert part in message


def test_the_real_images_of_darkcovid_have_the_published_counts(tmp_path: Path) -> None:
    cxr3 = real_data("cxr3")
    rows = read_table(cxr3 / "folds.csv")
    folders = {"normal": "No_findings", "pneumonia": "Pneumonia", "covid19": "Covid-19"}
    for row in rows:
        target = tmp_path / "X-Ray Image DataSet" / folders[row["label"]] / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(cxr3 / row["split"] / row["label"] / row["file"])
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        cohen_rows = [(row["patient"].removeprefix("cohen-"), row["file"]) for row in rows if row["label"] == "covid19"]
        tables.writer(file).writerows([("patientid", "filename"), *cohen_rows])
    folder = prepare("darkcovid", tmp_path, tmp_path / "data")
    assert "published" not in notes(folder)
    patients = {Path(name).name: patient for patient, names in by_patient(folder).items() for name in names}
    assert patients == {row["file"]: row["patient"] for row in rows}
