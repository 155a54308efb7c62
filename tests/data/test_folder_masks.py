"""Folders of images with masks: layouts, the table of patients, splits, and what is refused."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from covidjax.data import phantom, sources
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.listing import ImageFiles
from covidjax.errors import UserError
from tests.data.images import dataset_config as config
from tests.data.images import opened_below, real_data, write_rows
from tests.data.images import write_image as write

PAIR_HEADER = ("file", "patient", "split")


def pair_config(root: Path, **changes: object) -> ConfigDict:
    return config(root, **{"mask_classes": ("background", "lung"), **changes})


def load_pairs(root: Path, split: str, **changes: object) -> Examples:
    return sources.load(pair_config(root, **changes), split, masks=True)


def list_pairs(root: Path, split: str, **changes: object) -> ImageFiles:
    return sources.listed(pair_config(root, **changes), split, masks=True)


def write_pairs(root: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = PAIR_HEADER) -> None:
    write_rows(root / "splits.csv", header, rows)


@pytest.fixture
def flat(tmp_path: Path) -> Callable[..., Path]:
    """Make root/images/<number>.jpg and root/masks/<number>.png; with `table` two images for each patient."""

    def build(count: int = 8, table: bool = True, ending: str = ".png") -> Path:
        root = tmp_path / "root"
        for number in range(count):
            write(root / "images" / f"{number}.jpg", number)
            write(root / "masks" / f"{number}{ending}", 255 * (number % 2))
        if table:
            write_pairs(root, [(f"{n}.jpg", f"p{n // 2}", SPLITS[n // 2 % 3]) for n in range(count)])
        return root

    return build


@pytest.fixture
def beside(tmp_path: Path) -> Callable[..., Path]:
    """Make root/<patient>/<name>.tif with <name>_mask.tif, three for each patient."""

    def build(num_patients: int = 16, below: str = "") -> Path:
        root = tmp_path / "root"
        for patient in range(num_patients):
            for number in range(3):
                write(root / below / f"TCGA_{patient:02}" / f"TCGA_{patient:02}_{number}.tif", patient)
                write(root / below / f"TCGA_{patient:02}" / f"TCGA_{patient:02}_{number}_mask.tif", 255)
        return root

    return build


@pytest.mark.parametrize("ending", [".png", "_mask.png", ".tif", "_mask.bmp"])
def test_images_and_masks_side_by_side_with_a_table(flat: Callable, ending: str) -> None:
    root = flat(ending=ending)
    with opened_below(root) as opened:
        examples = load_pairs(root, "train")
    assert {Path(name).stem.removesuffix("_mask") for name in opened} == {"splits", "0", "1", "6", "7"}
    assert examples.names == ("images/0.jpg", "images/1.jpg", "images/6.jpg", "images/7.jpg")
    masks = {row.name: row.masks for row in list_pairs(root, "val").rows}
    assert masks == {f"images/{n}.jpg": (f"masks/{n}{ending}",) for n in (2, 3)}
    assert examples.patients == ("p0", "p0", "p3", "p3")
    assert examples.patients_known
    assert examples.classes == ("background", "lung")
    assert examples.masks is not None
    assert examples.masks[:, 0, 0].tolist() == [0, 1, 0, 1]
    assert examples.images[:, 0, 0, 0].tolist() == [0, 1, 6, 7]
    assert examples.labels.tolist() == [0] * 4
    assert "train: 2 of 4 masks are empty" in examples.notes


def test_split_folders_with_images_and_masks(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for split in SPLITS:
        for number in range(2):
            write(root / split / "images" / f"{number}.png", number)
            write(root / split / "masks" / f"{number}_mask.png", 1)
    for split in SPLITS:
        masks = {row.name: row.masks for row in list_pairs(root, split).rows}
        assert masks == {f"{split}/images/{n}.png": (f"{split}/masks/{n}_mask.png",) for n in range(2)}
    assert "no patient ids: the split is image-level" in load_pairs(root, "test").notes
    write_pairs(root, [(f"{n}.png", f"{split}{n}", split) for split in SPLITS for n in range(2)])
    assert load_pairs(root, "test").patients == ("test0", "test1")


@pytest.mark.parametrize("below", ["", "kaggle_3m"])
def test_a_mask_beside_its_image_in_the_folder_of_the_patient(beside: Callable, below: str) -> None:
    root = beside(below=below)
    train, val = (list_pairs(root, split) for split in ("train", "val"))
    assert (len(train.names), len(val.names)) == (42, 6)
    assert not set(train.patients) & set(val.patients)
    for files in (train, val):
        assert files.patients_known
        for row in files.rows:
            assert row.patient == Path(row.name).parent.name
            assert row.masks == (row.name.replace(".tif", "_mask.tif"),)
        assert any("no val split: 6 images" in note and "by patient" in note for note in files.notes)
    with pytest.raises(UserError, match=r"has no test split: add test rows to .*splits\.csv"):
        list_pairs(root, "test")
    place = f"{below}/" if below else ""
    rows = [(f"{place}TCGA_{p:02}/TCGA_{p:02}_{n}.tif", f"q{p}", SPLITS[p % 3]) for p in range(16) for n in range(3)]
    write_pairs(root, rows)
    assert set(list_pairs(root, "test").patients) == {"q2", "q5", "q8", "q11", "q14"}


def test_several_masks_of_an_image_are_joined_or_refused_with_that_reason(beside: Callable) -> None:
    root = beside(2)
    for name, left in (("TCGA_00_0_mask_1.tif", 0), ("TCGA_00_0_mask_2.tif", 4)):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[:4, left : left + 4] = 255
        Image.fromarray(pixels).save(root / "TCGA_00" / name)
    write(root / "TCGA_00" / "TCGA_00_0_mask.tif", 0)
    write_pairs(root, [(f"TCGA_0{p}/TCGA_0{p}_{n}.tif", f"p{p}", SPLITS[p]) for p in range(2) for n in range(3)])
    examples = load_pairs(root, "train")
    assert examples.masks is not None
    assert examples.masks[0].tolist() == [[1] * 8] * 4 + [[0] * 8] * 4
    assert examples.masks[1].all()
    assert "1 images have several masks, which were joined: TCGA_00/TCGA_00_0.tif" in examples.notes
    with pytest.raises(
        UserError, match="it has 3 masks: .*; with more than two classes make one of them, of class ids"
    ):
        load_pairs(root, "train", mask_classes=("background", "lung", "lesion"))


def test_images_and_masks_may_lie_in_folders_of_the_same_names(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        for folder in ("images", "masks"):
            write(tmp_path / "root" / folder / patient / "1.png", 1)
    write(tmp_path / "root" / "more" / "1.png")
    write(tmp_path / "root" / "images" / "p3" / "1.png")
    write(tmp_path / "root" / "masks" / "p3" / "1.png")
    write_pairs(tmp_path / "root", [*((f"{p}/1.png", p, "train") for p in ("p1", "p2")), ("p3/1.png", "p3", "val")])
    files = list_pairs(tmp_path / "root", "train")
    assert {row.name: row.masks for row in files.rows} == {
        f"images/{patient}/1.png": (f"masks/{patient}/1.png",) for patient in ("p1", "p2")
    }
    assert "1 images outside images/ and masks/ are not read: 1 in more" in files.notes


def test_images_and_masks_whose_names_are_no_utf8_are_read(flat: Callable) -> None:
    root = flat(8, table=False)
    for folder, ending in (("images", "jpg"), ("masks", "png")):
        (root / folder / f"3.{ending}").rename(root / folder / os.fsdecode(b"r\xf6." + ending.encode()))
    write_pairs(root, [(f"{n}.jpg", "train") for n in range(8) if n != 3] + [("r\\xf6.jpg", "val")], ("file", "split"))
    examples = load_pairs(root, "val")
    assert examples.names == ("images/r\\xf6.jpg",)
    assert examples.masks is not None and examples.masks.all()
    assert examples.images[0, 0, 0, 0] == 3


def test_a_test_folder_beside_images_is_the_test_split(flat: Callable) -> None:
    root = flat(16, table=False)
    for number in range(3):
        write(root / "Testing" / "Images" / f"{number}.png", number)
        write(root / "Testing" / "MASKS" / f"{number}.png", 255)
    train, val, test = (list_pairs(root, split) for split in SPLITS)
    assert test.names == tuple(f"Testing/Images/{number}.png" for number in range(3))
    assert sorted((*train.names, *val.names)) == sorted(f"images/{number}.jpg" for number in range(16))
    assert "Testing/ is taken as the test split" in test.notes
    assert "there is no train folder: the images outside split folders are train: 16 in images" in test.notes
    rows = [(f"{n}.jpg", f"p{n}", "train") for n in range(16)] + [(f"{n}.png", f"q{n}", "test") for n in range(3)]
    write_pairs(root, rows)
    assert list_pairs(root, "test").patients == ("q0", "q1", "q2")


def test_a_table_without_patients_is_a_split_by_image(flat: Callable) -> None:
    root = flat()
    write_pairs(root, [(f"{n}.jpg", SPLITS[n % 3]) for n in range(8)], ("file", "split"))
    files = list_pairs(root, "test")
    assert (files.names, files.patients_known) == (("images/2.jpg", "images/5.jpg"), False)
    assert files.notes == ("no patient ids: the split is image-level",)


def test_the_patient_is_the_first_folder_that_differs(tmp_path: Path) -> None:
    for place in ("all/P1/study/a", "all/P1/study/b", "all/P2/study/a"):
        write(tmp_path / "root" / place / "1.png")
        write(tmp_path / "root" / place / "1_mask.png", 255)
    with pytest.raises(UserError, match="2 patients are too few .*; each folder is taken for a patient, 2: P1, P2: if"):
        list_pairs(tmp_path / "root", "train")


def test_split_folders_of_patients_are_no_pool(beside: Callable) -> None:
    root = beside(12)
    for split, patients in (("train", range(8)), ("val", (8, 9)), ("test", (10,))):
        (root / split).mkdir()
        for patient in patients:
            (root / f"TCGA_{patient:02}").rename(root / split / f"TCGA_{patient:02}")
    with pytest.raises(UserError, match=r"images outside them: TCGA_11/TCGA_11_0\.tif"):
        list_pairs(root, "train")
    (root / "TCGA_11").rename(root / "test" / "TCGA_11")
    assert set(list_pairs(root, "test").patients) == {"TCGA_10", "TCGA_11"}
    assert [len(list_pairs(root, split).names) for split in SPLITS] == [24, 6, 6]
    (root / "test" / "TCGA_11").rename(root / "test" / "TCGA_00")
    with pytest.raises(UserError, match="both test and train: TCGA_00"):
        list_pairs(root, "train")


def test_without_a_table_or_val_rows_a_fixed_part_is_held_out(flat: Callable) -> None:
    root = flat(48, table=False)
    train, val = (list_pairs(root, split) for split in ("train", "val"))
    assert (len(train.names), len(val.names), train.patients_known) == (42, 6, False)
    assert any("by image: no patient ids, so this is image-level" in note for note in val.notes)
    write_pairs(root, [(f"{n}.jpg", f"p{n // 2}", "test" if n < 4 else "train") for n in range(48)])
    train, val, test = (list_pairs(root, split) for split in SPLITS)
    assert (len(train.names) + len(val.names), len(test.names)) == (44, 4)
    assert val.names and not set(train.patients) & set(val.patients)


def test_fold_of_pairs_needs_its_column(flat: Callable) -> None:
    root = flat(40)
    with pytest.raises(UserError, match="lacks the columns fold"):
        list_pairs(root, "test", fold=1)
    write_pairs(root, [(f"{n}.jpg", f"p{n // 2}", "train", n // 2 % 4) for n in range(40)], (*PAIR_HEADER, "fold"))
    assert set(list_pairs(root, "test", fold=1).patients) == {f"p{n}" for n in range(1, 20, 4)}


def test_all_faults_are_listed_in_one_message_before_training(flat: Callable) -> None:
    root = flat(24, table=False)
    write(root / "masks" / "0.png", 255, (8, 9))
    (root / "masks" / "1.png").unlink()
    write(root / "masks" / "2.png", 3)
    (root / "masks" / "3.png").unlink()
    write(root / "masks" / "3.jpg", 255)
    write(root / "masks" / "4_mask.png", 255)
    write(root / "images" / "5.png", 255)
    rows = [(f"{n}.jpg", f"p{n}", "train") for n in range(23)]
    write_pairs(root, [*rows, ("5.png", "p5", "train"), ("23.jpg", "p23", "val")])
    with pytest.raises(UserError) as caught:
        load_pairs(root, "train")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "7 of 24 train files are bad",
        "dataset.skip_bad=true",
        "0.jpg (its mask masks/0.png: 8 x 9 pixels, but the image has 8 x 8)",
        "1.jpg (it has no mask masks/1.png)",
        "2.jpg (its mask masks/2.png: class ids 3 are out of range",
        "3.jpg (its mask masks/3.jpg: lossy JPEG",
        "4.jpg (it has 2 masks: 4.png, 4_mask.png; keep one)",
        "5.jpg (2 images have the name 5, and one mask)",
        "5.png (2 images have the name 5, and one mask)",
    ):
        assert part in message
    assert len(load_pairs(root, "val")) == 1
    examples = load_pairs(root, "train", skip_bad=True)
    assert examples.names == tuple(sorted(f"images/{n}.jpg" for n in range(6, 23)))
    assert any("7 bad files were dropped" in note and "1.jpg (it has no mask" in note for note in examples.notes)


def test_what_is_no_pair_is_noted(flat: Callable) -> None:
    root = flat()
    write(root / "masks" / "orphan.png")
    (root / "images" / "notes.txt").write_text("no image")
    write(root / "images" / ".hidden.png")
    (note,) = (note for note in list_pairs(root, "val").notes if "ignored" in note)
    assert "2 entries" in note
    assert "images/notes.txt, masks/orphan.png" in note


@pytest.mark.parametrize("folders", [(), ("images",), ("train/images", "train/masks"), ("train/cat", "train/dog")])
def test_a_wrong_layout_shows_the_right_ones(tmp_path: Path, folders: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"root does not exist or is no folder; expected layout"):
        list_pairs(tmp_path / "root", "train")
    (tmp_path / "root").mkdir()
    for folder in folders:
        write(tmp_path / "root" / folder / f"{Path(folder).name}.png")
    with pytest.raises(UserError, match=r"(masks does not exist|has no image with a mask); expected layout"):
        list_pairs(tmp_path / "root", "train")


def test_masks_that_teach_nothing_are_an_error_and_an_unseen_class_is_noted(flat: Callable) -> None:
    root, classes = flat(), ("background", "lung", "lesion")
    for number in range(8):
        write(root / "masks" / f"{number}.png", number % 2)
    notes = load_pairs(root, "train", mask_classes=classes).notes
    assert "no training mask has a pixel of lesion: what is not seen is not learnt" in notes
    assert not any("lesion" in note for note in load_pairs(root, "val", mask_classes=classes).notes)
    for number in range(8):
        write(root / "masks" / f"{number}.png", 0)
    with pytest.raises(UserError, match="all 4 training masks .* are empty"):
        load_pairs(root, "train")
    assert "val: 2 of 2 masks are empty" in load_pairs(root, "val").notes


def test_the_task_chooses_the_labels_of_phantoms() -> None:
    settings = config(Path(), name="phantom", seed=5, image_size=32, num_images=12)
    whole, pixels = (sources.load(settings, "train", masks=masks) for masks in (False, True))
    assert (whole.classes, pixels.classes) == (phantom.CLASSES, ("background", "lung", "lesion"))
    assert pixels.masks is not None and not pixels.labels.any()
    assert set(np.unique(pixels.masks)) == {0, 1, 2}
    np.testing.assert_array_equal(whole.images, pixels.images)


@pytest.mark.parametrize(("split", "images", "patients"), [("train", 119, 78), ("val", 18, 11), ("test", 35, 23)])
def test_lungseg_decodes_as_its_readme_says(tmp_path: Path, split: str, images: int, patients: int) -> None:
    examples = load_pairs(real_data("lungseg"), split, image_size=64, cache_dir=str(tmp_path))
    assert examples.masks is not None
    assert (len(examples), len(set(examples.patients))) == (images, patients)
    assert examples.notes == ()
    fractions = examples.masks.mean(axis=(1, 2))
    assert 0.08 < fractions.min() < fractions.max() < 0.75


def test_a_drawn_subset_is_of_training_images_alone_and_says_how_many_of_how_many(flat: Callable[..., Path]) -> None:
    root = flat(36)  # 12 images of 6 patients in each split
    whole = load_pairs(root, "train")
    drawn = [load_pairs(root, "train", subset=5, split_seed=seed) for seed in (0, 0, 1)]
    assert [len(each) for each in (whole, *drawn)] == [12, 5, 5, 5]
    assert drawn[0].names == drawn[1].names != drawn[2].names
    assert set(drawn[0].names) < set(whole.names) and len(set(drawn[0].patients)) == 3
    told = "train: 5 of 12 images were drawn of 3 of 6 patients (dataset.subset, with dataset.split_seed 0)"
    assert told in drawn[0].notes
    assert drawn[0].fingerprint != whole.fingerprint
    assert load_pairs(root, "val", subset=5).names == load_pairs(root, "val").names
    with pytest.raises(UserError, match="config.dataset.subset is 13, and there are 12 training images: lower it"):
        load_pairs(root, "train", subset=13)
