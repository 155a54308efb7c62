"""Folders of images with masks: layouts, which mask is whose, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidjax.data import phantom, sources
from covidjax.data.examples import SPLITS
from covidjax.errors import UserError
from tests.data.images import dataset_config as config
from tests.data.images import opened_below, real_data
from tests.data.images import write_image as write
from tests.data.mask_folders import beside, flat, list_pairs, load_pairs, write_pairs

__all__ = ["beside", "flat"]  # fixtures


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
    with pytest.raises(
        UserError, match=r"there is no folder .*root: a relative one begins where the command starts; expected layout"
    ):
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
