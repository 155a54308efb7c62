"""Folders of images with masks: layouts, the table of patients, splits, and what is refused."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax.data import phantom, sources
from covidjax.data.examples import SPLITS
from covidjax.errors import UserError
from tests.data.images import dataset_config, opened_below, real_data, write_rows
from tests.data.images import write_image as write

HEADER = ("file", "patient", "split")
load, list_pairs = (partial(function, masks=True) for function in (sources.load, sources.listed))


def config(root: Path, **changes: object) -> ConfigDict:
    return dataset_config(root, **{"mask_classes": ("background", "lung"), **changes})


def write_table(root: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = HEADER) -> None:
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
            write_table(root, [(f"{n}.jpg", f"p{n // 2}", SPLITS[n // 2 % 3]) for n in range(count)])
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


def masks_of(root: Path, split: str, **changes: object) -> dict[str, str | None]:
    files = list_pairs(config(root, **changes), split)
    return {row.name: row.mask for row in files.rows}


@pytest.mark.parametrize("ending", [".png", "_mask.png", ".tif", "_mask.bmp"])
def test_images_and_masks_side_by_side_with_a_table(flat: Callable, ending: str) -> None:
    root = flat(ending=ending)
    examples = load(config(root), "train")
    assert examples.names == ("images/0.jpg", "images/1.jpg", "images/6.jpg", "images/7.jpg")
    assert masks_of(root, "val") == {f"images/{n}.jpg": f"masks/{n}{ending}" for n in (2, 3)}
    assert examples.patients == ("p0", "p0", "p3", "p3")
    assert examples.patients_known
    assert examples.classes == ("background", "lung")
    assert examples.masks is not None
    assert examples.masks[:, 0, 0].tolist() == [0, 1, 0, 1]
    assert examples.images[:, 0, 0, 0].tolist() == [0, 1, 6, 7]
    assert examples.labels.tolist() == [0] * 4
    assert "train: 2 of 4 masks are empty" in examples.notes


def test_split_folders_with_images_and_masks(tmp_path: Path) -> None:
    for split in SPLITS:
        for number in range(2):
            write(tmp_path / "root" / split / "images" / f"{number}.png", number)
            write(tmp_path / "root" / split / "masks" / f"{number}_mask.png", 1)
    root = tmp_path / "root"
    for split in SPLITS:
        assert masks_of(root, split) == {f"{split}/images/{n}.png": f"{split}/masks/{n}_mask.png" for n in range(2)}
    assert "no patient ids: the split is image-level" in load(config(root), "test").notes
    write_table(root, [(f"{n}.png", f"{split}{n}", split) for split in SPLITS for n in range(2)])
    assert load(config(root), "test").patients == ("test0", "test1")


@pytest.mark.parametrize("below", ["", "kaggle_3m"])
def test_a_mask_beside_its_image_in_the_folder_of_the_patient(beside: Callable, below: str) -> None:
    root = beside(below=below)
    train, val = (list_pairs(config(root), split) for split in ("train", "val"))
    assert len(train.names) + len(val.names) == 48
    assert len(val.names) == 6
    assert not set(train.patients) & set(val.patients)
    for files in (train, val):
        assert files.patients_known
        for name, mask, patient in ((row.name, row.mask, row.patient) for row in files.rows):
            assert patient == Path(name).parent.name
            assert mask == name.replace(".tif", "_mask.tif")
            assert (root / mask).is_file()
        assert any("no val split: 6 images" in note and "by patient" in note for note in files.notes)
    assert list_pairs(config(root, seed=5), "val").names == val.names
    with pytest.raises(UserError, match=r"has no test split: add test rows to .*splits\.csv"):
        list_pairs(config(root), "test")
    place = f"{below}/" if below else ""
    rows = [(f"{place}TCGA_{p:02}/TCGA_{p:02}_{n}.tif", f"q{p}", SPLITS[p % 3]) for p in range(16) for n in range(3)]
    write_table(root, rows)
    assert set(list_pairs(config(root), "test").patients) == {"q2", "q5", "q8", "q11", "q14"}


def test_split_folders_of_patients_are_no_pool(beside: Callable) -> None:
    root = beside(12)
    for split, patients in (("train", range(8)), ("val", (8, 9)), ("test", (10,))):
        (root / split).mkdir()
        for patient in patients:
            (root / f"TCGA_{patient:02}").rename(root / split / f"TCGA_{patient:02}")
    with pytest.raises(UserError, match=r"images outside them: TCGA_11/TCGA_11_0\.tif"):
        list_pairs(config(root), "train")
    (root / "TCGA_11").rename(root / "test" / "TCGA_11")
    assert set(list_pairs(config(root), "test").patients) == {"TCGA_10", "TCGA_11"}
    assert [len(list_pairs(config(root), split).names) for split in SPLITS] == [24, 6, 6]
    (root / "test" / "TCGA_11").rename(root / "test" / "TCGA_00")
    with pytest.raises(UserError, match="both test and train: TCGA_00"):
        list_pairs(config(root), "train")


def test_without_a_table_a_fixed_part_is_held_out_by_image(flat: Callable) -> None:
    root = flat(48, table=False)
    train, val = (list_pairs(config(root), split) for split in ("train", "val"))
    assert (len(train.names), len(val.names)) == (42, 6)
    assert not set(train.names) & set(val.names)
    assert not train.patients_known
    assert any("by image: no patient ids, so this is image-level" in note for note in val.notes)


def test_table_without_val_holds_patients_out(flat: Callable) -> None:
    root = flat(40)
    write_table(root, [(f"{n}.jpg", f"p{n // 2}", "test" if n < 4 else "train") for n in range(40)])
    train, val, test = (list_pairs(config(root), split) for split in SPLITS)
    assert len(train.names) + len(val.names) == 36
    assert len(val.names) in (4, 6)
    assert len(test.names) == 4
    assert not set(train.patients) & set(val.patients)


def test_fold_needs_its_column_and_replaces_the_splits(flat: Callable) -> None:
    root = flat(40)
    with pytest.raises(UserError, match="lacks the columns fold"):
        list_pairs(config(root, fold=1), "test")
    rows = [(f"{n}.jpg", f"p{n // 2}", "train", n // 2 % 4) for n in range(40)]
    write_table(root, rows, (*HEADER, "fold"))
    lists = {split: list_pairs(config(root, fold=1), split) for split in SPLITS}
    assert set(lists["test"].patients) == {f"p{n}" for n in range(1, 20, 4)}
    assert sum(len(files.names) for files in lists.values()) == 40
    assert not set(lists["train"].patients) & set(lists["val"].patients)
    (root / "splits.csv").unlink()
    with pytest.raises(UserError, match=r"splits\.csv does not exist"):
        list_pairs(config(root, fold=1), "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("0.jpg", "p", "train")], "images/1.jpg (file, but no row)"),
        ([("0.jpg", "p", "train"), ("1.jpg", "", "train")], "line 3: needs a patient"),
        ([("0.jpg", "p", "train"), ("1.jpg", "p", "dev")], "line 3: split is 'dev'; allowed: train, val, test"),
        ([("0.jpg", "p", "train"), ("1.jpg", "p", "val")], "both train and val: p"),
    ],
)
def test_a_wrong_table_is_refused(flat: Callable, rows: list[tuple[str, str, str]], message: str) -> None:
    root = flat(2)
    write_table(root, rows)
    with pytest.raises(UserError) as caught:
        list_pairs(config(root), "train")
    assert message in str(caught.value)


def test_all_faults_are_listed_in_one_message_before_training(flat: Callable) -> None:
    """The four of the issue, and those that leave open which mask is meant."""
    root = flat(24, table=False)
    write(root / "masks" / "0.png", 255, (8, 9))
    (root / "masks" / "1.png").unlink()
    write(root / "masks" / "2.png", 3)
    (root / "masks" / "3.png").unlink()
    write(root / "masks" / "3.jpg", 255)
    write(root / "masks" / "4_mask.png", 255)
    write(root / "images" / "5.png", 255)
    write_table(root, [(f"{n}.jpg", f"p{n}", "train") for n in range(24)] + [("5.png", "p5", "train")])
    (root / "splits.csv").write_text((root / "splits.csv").read_text().replace("23.jpg,p23,train", "23.jpg,p23,val"))
    with pytest.raises(UserError) as caught:
        load(config(root), "train")
    message = str(caught.value)
    assert "7 of 24 train files are bad" in message
    assert "dataset.skip_bad=true" in message
    assert "\n" not in message
    for part in (
        "0.jpg (its mask masks/0.png: 8 x 9 pixels, but the image has 8 x 8)",
        "1.jpg (it has no mask masks/1.png)",
        "2.jpg (its mask masks/2.png: class ids 3 are out of range",
        "3.jpg (its mask masks/3.jpg: lossy JPEG",
        "4.jpg (it has 2 masks: 4.png, 4_mask.png; keep one)",
        "5.jpg (2 images have the name 5, and one mask)",
        "5.png (2 images have the name 5, and one mask)",
    ):
        assert part in message
    examples = load(config(root, skip_bad=True), "train")
    assert examples.names == tuple(sorted(f"images/{n}.jpg" for n in range(6, 23)))
    assert any("7 bad files were dropped" in note and "1.jpg (it has no mask" in note for note in examples.notes)


def test_a_fault_of_another_split_does_not_stop_training(flat: Callable) -> None:
    root = flat()
    (root / "masks" / "4.png").unlink()
    assert len(load(config(root), "train")) == 4
    with pytest.raises(UserError, match="it has no mask"):
        load(config(root), "test")


def test_other_splits_are_never_opened(flat: Callable) -> None:
    root = flat()
    with opened_below(root) as opened:
        load(config(root), "train")
    assert {Path(name).stem for name in opened} == {"splits", "0", "1", "6", "7"}


def test_what_is_no_pair_is_noted(flat: Callable, beside: Callable) -> None:
    root = flat()
    write(root / "masks" / "orphan.png")
    (root / "images" / "notes.txt").write_text("no image")
    write(root / "images" / ".hidden.png")
    (note,) = (note for note in list_pairs(config(root), "val").notes if "ignored" in note)
    assert "2 entries" in note
    assert "images/notes.txt, masks/orphan.png" in note


@pytest.mark.parametrize("folders", [(), ("images",), ("train/images", "train/masks", "val/images")])
def test_a_wrong_layout_shows_the_right_ones(tmp_path: Path, folders: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"root does not exist or is no folder; expected layout"):
        list_pairs(config(tmp_path / "root"), "train")
    (tmp_path / "root").mkdir()
    for folder in folders:
        write(tmp_path / "root" / folder / "a.png")
    with pytest.raises(UserError, match=r"(masks does not exist|has no image with a mask); expected layout") as caught:
        list_pairs(config(tmp_path / "root"), "train")
    assert "\n" not in str(caught.value)


def test_classes_of_whole_images_are_no_pairs(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        write(tmp_path / "root" / "train" / label / "a.png")
    with pytest.raises(UserError, match="has no image with a mask"):
        list_pairs(config(tmp_path / "root"), "train")


def test_masks_that_teach_nothing_are_an_error_and_an_unseen_class_is_noted(flat: Callable) -> None:
    root = flat()
    with_lesion = config(root, mask_classes=("background", "lung", "lesion"))
    for number in range(8):
        write(root / "masks" / f"{number}.png", number % 2)
    notes = load(with_lesion, "train").notes
    assert "no training mask has a pixel of lesion: what is not seen is not learnt" in notes
    assert not any("lesion" in note for note in load(with_lesion, "val").notes)
    for number in range(8):
        write(root / "masks" / f"{number}.png", 0)
    with pytest.raises(UserError, match="all 4 training masks .* are empty"):
        load(with_lesion, "train")
    assert "val: 2 of 2 masks are empty" in load(with_lesion, "val").notes


def test_the_task_chooses_the_labels() -> None:
    settings = dataset_config(Path(), name="phantom", seed=5, image_size=32, num_images=12)
    whole, pixels = (sources.load(settings, "train", masks=masks) for masks in (False, True))
    assert whole.classes == phantom.CLASSES
    assert pixels.classes == ("background", "lung", "lesion")
    assert not pixels.labels.any()
    assert pixels.masks is not None
    assert set(np.unique(pixels.masks)) == {0, 1, 2}
    np.testing.assert_array_equal(whole.images, pixels.images)


def test_the_task_chooses_the_reader_of_a_folder(flat: Callable) -> None:
    root = flat()
    assert sources.load(config(root), "val", masks=True).masks is not None
    with pytest.raises(UserError, match="train does not exist"):
        sources.load(config(root), "val")


@pytest.mark.parametrize(("split", "images", "patients"), [("train", 119, 78), ("val", 18, 11), ("test", 35, 23)])
def test_lungseg_decodes_as_its_readme_says(tmp_path: Path, split: str, images: int, patients: int) -> None:
    examples = load(config(real_data("lungseg"), image_size=64, cache_dir=str(tmp_path)), split)
    assert examples.masks is not None
    assert (len(examples), len(set(examples.patients))) == (images, patients)
    assert examples.notes == ()
    fractions = examples.masks.mean(axis=(1, 2))
    assert 0.08 < fractions.min() < fractions.max() < 0.75
