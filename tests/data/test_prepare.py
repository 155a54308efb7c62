"""The builders of public data sets, each on a miniature of what its publishers give away."""

import functools
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from covidjax.data.datasets import BUILDERS
from covidjax.data.formats.base import BadImageError
from covidjax.errors import UserError
from tests.data.images import encoded

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
pytest.importorskip("nibabel", reason="nibabel is not installed: make setup installs it")
from pydicom.uid import ExplicitVRLittleEndian  # noqa: E402

from covidjax.data.datasets import radiographs  # noqa: E402
from covidjax.data.datasets.prepare import prepare  # noqa: E402
from covidjax.data.datasets.records import Record, with_facts  # noqa: E402
from covidjax.data.datasets.stored import stored  # noqa: E402
from tests.data import trees  # noqa: E402


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Makes the tree of a data set and prepares it, once: the folders of both."""

    @functools.cache
    def made(name: str) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp("set")
        manual = trees.make(name, root / "manual")
        return manual, prepare(name, manual, root / "data")

    return made


def records(folder: Path, *, decoded: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All records by split, with images as bytes or, `decoded`, as arrays."""
    builder = tfds.builder_from_directory(folder)
    keys = [key for key in ("image", "mask") if key in builder.info.features and not decoded]
    decoders = {key: tfds.decode.SkipDecoding() for key in keys}
    return {split: list(builder.as_data_source(split, decoders=decoders)) for split in builder.info.splits}


def all_records(folder: Path, **options: bool) -> list[dict[str, Any]]:
    return list(itertools.chain.from_iterable(records(folder, **options).values()))


def notes(folder: Path) -> str:
    return " | ".join(json.loads((folder / "metadata.json").read_text())["notes"])


def by_patient(folder: Path) -> dict[str, list[str]]:
    """The ids of each patient's images."""
    found: dict[str, list[str]] = {}
    for record in all_records(folder):
        found.setdefault(record["patient"].decode(), []).append(record["id"].decode())
    return {patient: sorted(names) for patient, names in found.items()}


@pytest.mark.parametrize("name", trees.TREES)
def test_a_set_is_prepared_from_the_published_layout_and_readable_through_tfds(name: str, prepared: Callable) -> None:
    manual, folder = prepared(name)
    data = manual.parent / "data"
    assert folder == data / name / "1.0.0"
    assert [path.name for path in data.iterdir()] == [name.partition("/")[0]]
    assert {path.suffix.split("-")[0] for path in folder.glob("*-of-*")} == {".array_record"}
    everything = all_records(folder)
    if expected := trees.TREES[name][1]:
        assert {split: len(part) for split, part in records(folder).items()} == expected
    assert len({record["id"] for record in everything}) == len(everything) > 0
    assert {type(record["image"]) for record in everything} == {bytes}
    assert all(record["source"] or name.startswith("csv") for record in everything)
    assert {record["fold"] for record in everything} in ({0, 1, 2, 3, 4}, {-1})
    pairs = {(record["patient"], record["fold"]) for record in everything if record["patient"]}
    assert len(pairs) == len({patient for patient, _ in pairs})
    for record in all_records(folder, decoded=True):
        assert record["image"].shape == (16, 20, 3)
        assert record["image"].dtype == np.uint8
        assert record["mask"].shape == (16, 20, 1) if "mask" in record else record["label"] in (0, 1, 2)


def test_jpeg_and_png_are_stored_byte_for_byte_and_other_formats_as_png_without_loss(prepared: Callable) -> None:
    manual, folder = prepared("covid_ct")
    for record in all_records(folder):
        assert record["image"] == (manual / "Images-processed" / record["id"].decode()).read_bytes()
    for picture, suffix in ((Image.new("L", (5, 4), 7), "tiff"), (Image.new("RGB", (5, 4), (1, 2, 3)), "bmp")):
        png = Image.open(io.BytesIO(stored(encoded(picture, suffix))[0]))
        assert png.format == "PNG"
        np.testing.assert_array_equal(np.asarray(png), np.asarray(picture))


GRAY = np.random.default_rng(0).integers(0, 256, (32, 24), np.uint8)


def test_a_dicom_file_gives_its_jpeg_or_a_png_in_which_bright_is_white_and_all_levels_span_the_range() -> None:
    assert stored(trees.dicom(GRAY))[0].rstrip(b"\0") == encoded(Image.fromarray(GRAY), "jpg").rstrip(b"\0")
    twelve = np.random.default_rng(1).integers(0, 4096, (32, 24), np.uint16)
    inverted = 255 - trees.pixels(encoded(Image.fromarray(GRAY), "jpg"))
    np.testing.assert_array_equal(trees.pixels(stored(trees.dicom(GRAY, "MONOCHROME1"))[0]), inverted)
    for kind, values in (("MONOCHROME2", twelve), ("MONOCHROME1", 4095 - twelve)):
        found = trees.pixels(stored(trees.dicom(twelve, kind, 12, ExplicitVRLittleEndian))[0])
        assert found.dtype == np.uint16
        np.testing.assert_allclose(found, values * (65535 / 4095), atol=0.51)


def test_patients_of_dicom_files_are_told_apart_and_named_by_numbers(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.dcm" for number in range(5)]
    for path, patient in zip(paths, ("0004cfab", "Doe", "0004cfab", "", "Doe"), strict=True):
        path.write_bytes(trees.dicom(GRAY, patient=patient))
    found, told = with_facts([Record(path.name, path, "a") for path in paths])
    assert [record.patient for record in found] == ["dicom-1", "dicom-2", "dicom-1", "", "dicom-2"]
    assert told == ("2 patients are told apart by the PatientID of DICOM files, which is not kept",)
    named = [Record(path.name, path, "a", "p" if path is paths[0] else "") for path in paths]
    assert with_facts(named) == (named, ())
    unread = [Record("a.png", tmp_path / "there is none.png", "a")]
    assert with_facts(unread) == (unread, ())


def test_a_dicom_file_that_cannot_be_read_is_refused_in_one_line() -> None:
    cases = {
        "without an image": trees.dicom(GRAY)[:400],
        "damaged DICOM file": trees.dicom(GRAY, "PALETTE COLOR", syntax=ExplicitVRLittleEndian),
    }
    for reason, content in cases.items():
        with pytest.raises(BadImageError, match=reason) as caught:
            stored(content)[0]
        assert "\n" not in str(caught.value)


def test_splits_and_patients_are_those_of_the_names_and_lists_of_the_authors(prepared: Callable) -> None:
    _, folder = prepared("chest_xray_pneumonia")  # whose val goes back into train
    patients = by_patient(folder)
    assert patients["train-person1"] == [f"train/PNEUMONIA/person1_bacteria_{n}.jpeg" for n in (2, 3, 4874)]
    assert patients["test-person1"] == ["test/PNEUMONIA/person1_virus_6.jpeg"]
    assert patients["train-NORMAL2-IM-0115"] != patients["train-IM-0115"]
    assert "10 images of train normal, published are 1349" in notes(folder)
    _, folder = prepared("covid_ct")
    patients = by_patient(folder)
    assert patients["COVID-Patient 1"] == [f"CT_COVID/2020.03.01.2002959{n}-p15-109%{n}.png" for n in (2, 3)]
    assert patients["NonCOVID-patient 0"] == ["CT_NonCOVID/0%1.png", "CT_NonCOVID/1.jpg"]
    assert Counter(record["label"] for record in records(folder)["train"]) == {0: 6, 1: 6}


def test_patients_that_a_published_split_tears_apart_are_said(tmp_path: Path) -> None:
    root = trees.make("covid_ct", tmp_path / "manual")
    lists = {split: root / f"Data-split/COVID/{split}CT_COVID.txt" for split in ("train", "test")}
    train, test = (path.read_text().splitlines() for path in lists.values())
    lists["train"].write_text("\n".join([*train[1:], test[0]]))
    lists["test"].write_text("\n".join([*test[1:], train[0]]))
    folder = prepare("covid_ct", root, tmp_path / "data")
    assert "the split has 2 patients on two sides (COVID-Patient 0, COVID-Patient 4" in notes(folder)
    assert json.loads((folder / "metadata.json").read_text())["torn"] == ["COVID-Patient 0", "COVID-Patient 4"]


def test_covidx_finds_images_in_all_collections_and_draws_val(prepared: Callable) -> None:
    _, folder = prepared("covidx/plus")
    found = records(folder)
    assert {record["source"] for record in all_records(folder)} == {b"cohen", b"figure1", b"actualmed", b"rsna"}
    drawn = {record["patient"] for record in found["val"] if record["label"] == 2}
    others = {record["patient"] for split in ("train", "test") for record in found[split]}
    assert len(drawn) == 3
    assert not drawn & others
    assert "the 6 COVID-19 images of val are ours" in notes(folder)


def test_covidx_mini_is_a_balanced_part_of_plus(prepared: Callable) -> None:
    plus, mini = (records(prepared(f"covidx/{name}")[1]) for name in ("plus", "mini"))
    assert {r["id"] for r in mini["train"]} <= {r["id"] for r in plus["train"]}
    part = [Record(f"{label}/{n}", Path(), label, split=split) for split in ("train", "val", "test") for label, size in
            (("normal", 300), ("pneumonia", 250), ("covid19", 160)) for n in range(size)]  # fmt: skip
    drawn, published = radiographs._mini(part), radiographs.Covidx.PUBLISHED["mini"]
    expected = {(split, label): count for split, counts in published.items() for label, count in counts.items()}
    assert Counter((record.split, record.label) for record in drawn) == expected
    assert drawn == radiographs._mini(list(reversed(part)))


def test_rsna_cohen_has_the_papers_counts_of_boxes_and_no_patient_on_two_sides(prepared: Callable) -> None:
    boxes = [Record(f"{n} (box {b})", Path(), patient=f"p{n}") for n in range(6012) for b in range(1 + (n < 3543))]
    assert len(boxes) == 9555
    split = radiographs._split(boxes, (8603, 952))
    assert Counter(record.split for record in split) == {"train": 8603, "test": 952}
    assert len({(record.split, record.patient) for record in split}) == 6012

    folders = [prepared(f"rsna_cohen/{name}")[1] for name in ("images", "boxes")]
    once, often = ([record["id"].decode() for record in all_records(folder)] for folder in folders)
    assert (len(once), len(often)) == (60, 75)
    assert sorted(once) == sorted({name.partition(" (box")[0] for name in often})
    assert "15 examples are further boxes of the same images" in notes(folders[1])


def test_findings_of_either_version_of_the_table_are_known() -> None:
    row = {"patientid": "3", "view": "PA", "filename": "a.jpg"}
    cases = {"COVID-19, ARDS": "covid19", "Pneumonia/Viral/COVID-19": "covid19", "SARS": "pneumonia"}
    for finding, label in cases.items():
        listing = mock.Mock(table=lambda *_, text=finding: [{**row, "finding": text}])
        assert [found[2] for found in radiographs.findings(listing, Path())] == [label]


def test_darkcovid_has_the_patients_of_nih_and_of_the_table(prepared: Callable, tmp_path: Path) -> None:
    _, folder = prepared("darkcovid")
    assert len(by_patient(folder)["cohen-0"]) == 2
    assert "has no split of its own" in notes(folder)
    both = by_patient(folder)["nih-00001284"]
    assert {name.split("/")[0] for name in both} == {"No_findings", "Pneumonia"}
    root = trees.make("darkcovid", tmp_path / "manual")
    (root / "metadata.csv").unlink()
    bare = prepare("darkcovid", root, tmp_path / "bare")
    assert "the patient of 10 of 34 images is unknown" in notes(bare)


def test_covid_ct_seg_shows_the_window_the_way_radiologists_look(prepared: Callable) -> None:
    record = records(prepared("covid_ct_seg/slices")[1])["train"][0]
    image, mask = trees.pixels(record["image"]), trees.pixels(record["mask"])
    values = np.linspace(-1500, 300, 20)
    expected = np.round((np.clip(values, -1350, 150) + 1350) / 1500 * 255)
    assert image.shape == mask.shape == (16, 20)
    np.testing.assert_allclose(image, np.tile(expected, (16, 1)), atol=1)  # x of the file grows to the patient's left
    assert set(np.unique(mask)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(mask[12:], np.repeat([[2, 1]], 10, 1).repeat(4, 0))  # y grows to the back
    assert mask[1, 2] == 3


def test_every_builder_has_a_tree_and_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    assert {name.partition("/")[0] for name in trees.TREES} == set(BUILDERS) - trees.ELSEWHERE
    for name, known in (("cifar", "covid_ct, "), ("covidx/large", "covidx/plus, covidx/mini")):
        with pytest.raises(UserError, match=f"{name}.*allowed are .*{known}"):
            prepare(name, tmp_path, tmp_path)
