"""An audit finds each planted fault, and nothing on clean images."""

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

pytest.importorskip("imagehash", reason="imagehash, of the extra data, is not installed: nothing is audited")

from covidjax.data import sources
from covidjax.data.audit import copies, cues, reading, splits
from covidjax.data.audit.findings import SERIOUS, Finding, fingerprint_of, told_of, verdict
from covidjax.data.phantom import CLASSES, phantom
from covidjax.files import write_json
from tests.support import small_config

SIDE = 64
COUNTS = {"train": 80, "val": 20, "test": 20}
SEEDS = range(5)
TWO_SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 1)) for seed in SEEDS]


@functools.cache
def drawn(seed: int) -> list[tuple[str, str, str, Image.Image]]:
    """Split, class, patient and picture of phantoms."""
    found = []
    for split, count in COUNTS.items():
        for one in (phantom(seed, split, index, SIDE) for index in range(count)):
            found.append((split, CLASSES[one.label], one.patient, Image.fromarray(one.image)))
    return found


class Folder:
    """A folder data set of phantoms, to plant faults into."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.rows = root, list[list[str]]()
        for number, (split, label, patient, picture) in enumerate(drawn(seed)):
            self.add(split, label, patient, f"{number}.png", picture)

    def add(self, split: str, label: str, patient: str, file: str, picture: Image.Image) -> str:
        path = self.root / split / label / file
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        self.rows.append([file, label, patient, split, "0"])
        return f"{split}/{label}/{file}"

    def change(self, label: str, alter: Callable[[Image.Image], Image.Image]) -> None:
        """Alters all images of a class."""
        for path in self.root.glob(f"*/{label}/*"):
            alter(Image.open(path)).save(path)

    def of(self, split: str, label: str = CLASSES[0]) -> int:
        """The row of the first image of a split and class."""
        return next(number for number, row in enumerate(self.rows) if row[3] == split and row[1] == label)

    def read(self, header: Iterable[str] = ("file", "label", "patient", "split", "fold")) -> reading.Images:
        with (self.root / "folds.csv").open("w", newline="") as file:
            csv.writer(file).writerows([list(header), *self.rows])
        return reading.read(config_of(self.root).dataset, masks=False)


def config_of(root: Path) -> ConfigDict:
    return small_config(dataset__name="folder", dataset__root=str(root), dataset__image_size=32)


def made(name: str, split: str, pixels: np.ndarray) -> reading.Image64:
    return reading.with_pixels(reading.Image64(name, split, "normal", name, {}), pixels)


def shortcuts(data: reading.Images) -> dict[str, Finding]:
    return {str(one.numbers["cue"]): one for one in cues.find(data, permutations=199)[0]}


@pytest.mark.parametrize("seed", TWO_SEEDS)
def test_nothing_is_found_in_clean_images(tmp_path: Path, seed: int) -> None:
    data = Folder(tmp_path, seed).read()
    assert len(data.good) == sum(COUNTS.values())
    found, measured = cues.find(data, permutations=199)
    assert [*splits.patients(data), *copies.exact(data.good), *splits.slices(data), *splits.files(data), *found] == []
    assert {row["cue"] for row in measured if "p" in row} == {"borders", "centre blacked out", "collection"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_no_near_copies_are_found_in_clean_images(tmp_path: Path, seed: int) -> None:
    assert copies.near(Folder(tmp_path, seed).read().good) == []


def test_a_patient_in_two_splits_is_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    train, test = (folder.rows[folder.of(split)] for split in ("train", "test"))
    test[2] = train[2]
    (found,) = splits.patients(folder.read())
    assert (found.seriousness, found.names, found.count) == (SERIOUS, (f"{train[2]} (train, test)",), 1)


def test_an_image_that_was_compressed_again_and_cut_is_found_in_another_split() -> None:
    pixels = phantom(0, "train", 5, 256).image
    cut = Image.fromarray(pixels).crop((3, 6, 250, 252))
    buffer = io.BytesIO()
    cut.save(buffer, "JPEG", quality=60)
    others = [phantom(0, "val", index, 256).image for index in range(2)]
    images = [made("a", "train", pixels), made("b", "test", np.asarray(Image.open(buffer)))]
    images += [made(f"other{number}", "val", each) for number, each in enumerate(others)]
    (found,) = copies.near(images)
    assert (found.kind, found.seriousness, found.pairs) == ("near_copies", SERIOUS, (("a", "b"),))


def test_the_same_pixels_in_two_splits_and_in_two_classes_are_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    _, label, patient, picture = drawn(0)[0]
    other = next(each for each in CLASSES if each != label)
    folder.add("test", label, "another", "x.bmp", picture)
    folder.add("train", other, patient, "y.png", picture)
    found = copies.exact(folder.read().good)
    assert [(one.kind, one.numbers["across"]) for one in found] == [("copies", "splits"), ("copies", "classes")]
    assert {one.seriousness for one in found} == {SERIOUS}


def test_a_white_corner_on_one_class_is_found_in_the_borders(tmp_path: Path) -> None:
    def mark(picture: Image.Image) -> Image.Image:
        pixels = np.array(picture)
        pixels[1:6, 1:6] = 255
        return Image.fromarray(pixels)

    folder = Folder(tmp_path)
    folder.change("covid19", mark)
    found = shortcuts(folder.read())
    assert found["borders"].seriousness == SERIOUS and found["borders"].numbers["class"] == "covid19"
    assert found["borders"].numbers["p"] == 1 / 200


def test_a_size_that_depends_on_the_class_is_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.change("normal", lambda picture: picture.resize((SIDE, SIDE + 6)))
    found = shortcuts(folder.read())
    assert {"size", "aspect ratio"} <= found.keys()
    assert found["aspect ratio"].numbers["auroc"] == 1.0 and "normal: 0.91 in 100%" in found["aspect ratio"].text


def test_a_source_that_depends_on_the_class_is_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for number, row in enumerate(folder.rows):
        row.append("clinic A" if row[1] == "covid19" else "clinic B" if number % 2 else "clinic C")
    found = shortcuts(folder.read(("file", "label", "patient", "split", "fold", "source")))
    assert found.keys() == {"source"} and found["source"].seriousness == SERIOUS
    assert found["source"].numbers["class"] == "covid19"


def test_columns_of_the_table_are_those_of_the_file_in_its_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for number, place in enumerate(("one", "two")):
        folder.add("train", CLASSES[0], f"p{number}", f"{place}/same.png", drawn(0)[number][3])
    for row in folder.rows:
        row.append(row[0])
    data = folder.read(("file", "label", "patient", "split", "fold", "source"))
    assert all(image.name.endswith(f"/{image.facts['source']}") for image in data.good)


def test_jpeg_quality_is_read_from_the_tables_and_tells_a_class(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for path in tmp_path.glob("*/*/*"):
        picture = Image.open(path)
        path.unlink()
        picture.save(path.with_suffix(".jpg"), quality=70 if path.parent.name == "normal" else 90)
    for row in folder.rows:
        row[0] = row[0].replace(".png", ".jpg")
    data = folder.read()
    assert {image.quality for image in data.good} == {70, 90}
    assert shortcuts(data)["JPEG quality"].numbers["auroc"] == 1.0


def test_damaged_files_and_images_of_one_level_are_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    first, second = (tmp_path / "train" / folder.rows[number][1] / folder.rows[number][0] for number in (0, 1))
    first.write_bytes(first.read_bytes()[:200])
    Image.new("L", (SIDE, SIDE), 7).save(second)
    damaged, flat = splits.files(folder.read())
    assert (damaged.kind, damaged.seriousness, damaged.count) == ("damaged", SERIOUS, 1)
    assert flat.kind == "levels" and flat.names == (str(second.relative_to(tmp_path)),)


def test_slices_of_a_stack_in_two_splits_are_found_where_no_patients_are_known(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for row in folder.rows:
        row[2] = ""
    body, lesion = (np.asarray(drawn(0)[number][3], float) for number in (0, 1))
    for number in range(8):
        mixed = Image.fromarray((body + (lesion - body) * number / 20).astype(np.uint8))
        folder.add(("train", "test")[number % 2], "normal", "", f"scan-{number}.png", mixed)
    (found,) = splits.slices(folder.read())
    assert found.names == ("scan (8 slices)",) and found.seriousness == SERIOUS


def test_no_image_of_the_test_split_is_scored(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    _, measured = cues.find(folder.read(), permutations=9)
    assert {row["num_images"] for row in measured} == {COUNTS["train"] + COUNTS["val"]}


def test_the_interval_at_best_is_wilsons_over_the_patients_of_the_test_split(tmp_path: Path) -> None:
    _, rows = splits.counts(Folder(tmp_path).read())
    for row in rows:
        n, z = row["test_patients"], 1.959963984540054
        assert row["best_interval"] == pytest.approx([n / (n + z * z), 1.0], abs=1e-4)
    assert json.loads(json.dumps(rows)) == rows


def test_a_run_tells_the_verdict_of_the_same_images_alone(tmp_path: Path) -> None:
    config = small_config(dataset__image_size=16, dataset__num_images=24)
    examples = [sources.load(config.dataset, split) for split in ("train", "val")]
    known = {each.split: fingerprint_of(each) for each in examples}
    write_json(tmp_path / "audit.json", {"verdict": verdict([]), "splits": known})
    assert "nothing serious was found" in told_of(tmp_path, "", examples)["note"]
    config.dataset.seed = 1
    other = [sources.load(config.dataset, "train"), examples[1]]
    told = told_of(tmp_path, "", other)
    assert told.keys() == {"note"} and "other images of train:" in told["note"]
    assert told_of(tmp_path / "none", "", examples) == {}
