"""Splits, folds and patients of images with masks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from covidjax.data.examples import SPLITS
from covidjax.errors import UserError
from tests.data.images import write_image as write
from tests.data.mask_folders import PAIR_HEADER, beside, flat, list_pairs, load_pairs, write_pairs

__all__ = ["beside", "flat"]  # fixtures


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
