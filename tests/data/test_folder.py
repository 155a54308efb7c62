"""Folders of images by class: labels, the table of patients, splits, and what is refused."""

import csv
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from covidjax.data.examples import SPLITS
from covidjax.data.sources import listed as list_files
from covidjax.data.sources import load
from covidjax.errors import UserError
from tests.data.images import dataset_config as config
from tests.data.images import opened_below, real_data, write_rows
from tests.data.images import write_image as write

HEADER = ("file", "label", "patient", "split", "fold")


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Make root/<split>/<class>/<number>.png; with `table`, two images for each patient, and folds 0 to 4."""

    def build(images_per_class: int = 4, splits: tuple[str, ...] = SPLITS, table: bool = False) -> Path:
        root = tmp_path / "root"
        rows = []
        for split in splits:
            for label in ("cat", "dog"):
                for number in range(images_per_class):
                    write(root / split / label / f"{split}{number}.png", number)
                    patient = f"{split}-{label}-{number // 2}"
                    rows.append((f"{split}{number}.png", label, patient, split, number // 2 % 5))
        if table:
            write_table(root, rows)
        return root

    return build


def write_table(root: Path, rows: list, header: tuple[str, ...] = HEADER) -> None:
    write_rows(root / "folds.csv", header, rows)


def read_table(root: Path) -> list[list[str]]:
    with (root / "folds.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def test_labels_and_names_follow_the_folders(tree: Callable) -> None:
    root = tree(3)
    for suffix in ("JPG", "jpeg", "Bmp"):
        write(root / "train" / "cat" / f"x.{suffix}")
    examples = load(config(root), "train")
    assert examples.classes == ("cat", "dog")
    assert len(examples) == 9
    assert list(examples.names) == sorted(examples.names)
    for name, label in zip(examples.names, examples.labels, strict=True):
        assert (root / name).is_file()
        assert name.split("/")[:2] == ["train", examples.classes[label]]
    assert not examples.patients_known
    assert examples.patients == examples.names
    assert "no patient ids: the split is image-level" in examples.notes


def test_other_splits_are_never_opened(tree: Callable) -> None:
    root = tree()
    with opened_below(root) as opened:
        load(config(root), "train")
    assert {name.split("/")[0] for name in opened} == {"train"}


def test_bad_test_files_do_not_stop_training(tree: Callable) -> None:
    root = tree()
    (root / "test" / "cat" / "test0.png").write_bytes(b"")
    assert len(load(config(root), "train")) == 8
    with pytest.raises(UserError, match=r"test0\.png"):
        load(config(root), "test")


@pytest.mark.parametrize("missing", ["root", "train", "test"])
def test_missing_folder_is_named_with_the_layout(tree: Callable, missing: str) -> None:
    root = tree(splits=tuple(split for split in SPLITS if split != missing))
    path = root.parent / "nowhere" if missing == "root" else root / missing
    with pytest.raises(UserError, match=f"{path} .*<class>/<image>"):
        load(config(path if missing == "root" else root), "test")


def test_missing_test_folder_does_not_stop_training(tree: Callable) -> None:
    assert len(load(config(tree(splits=("train", "val"))), "train")) == 8


def test_train_without_class_folders_shows_the_layout(tmp_path: Path) -> None:
    write(tmp_path / "root" / "train" / "a.png")
    with pytest.raises(UserError, match="has no class folders; expected layout"):
        load(config(tmp_path / "root"), "train")


def test_images_and_masks_are_no_classes(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        write(tmp_path / "root" / "train" / folder / "a.png")
    with pytest.raises(UserError, match=r"images and their masks, which are no classes: .*model\.name='unet'"):
        load(config(tmp_path / "root"), "train")


def test_empty_class_folder_is_named(tree: Callable) -> None:
    root = tree()
    (root / "val" / "cow").mkdir()
    (root / "val" / "cow" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=f"without images: {root / 'val' / 'cow'}"):
        load(config(root), "train")


def test_class_that_train_lacks_is_named(tree: Callable) -> None:
    root = tree()
    write(root / "test" / "cow" / "a.png")
    with pytest.raises(UserError, match="train lacks: cow; allowed: cat, dog"):
        load(config(root), "train")


def test_class_that_test_lacks_keeps_its_label(tree: Callable) -> None:
    root = tree()
    for path in (root / "test" / "cat").iterdir():
        path.unlink()
    (root / "test" / "cat").rmdir()
    examples = load(config(root), "test")
    assert examples.classes == ("cat", "dog")
    assert set(examples.labels) == {1}


def test_a_class_without_a_good_image_is_an_error(tree: Callable) -> None:
    root = tree(2)
    for path in (root / "train" / "cat").iterdir():
        path.write_bytes(b"bad")
    with pytest.raises(UserError, match="left in class cat"):
        load(config(root, skip_bad=True), "train")


def test_ignored_entries_are_noted_and_hidden_ones_passed_over(tree: Callable) -> None:
    root = tree()
    (root / "train" / "cat" / "scan.dcm").write_bytes(b"")
    (root / "train" / "cat" / "._train0.png").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    examples = load(config(root), "train")
    assert len(examples) == 8
    assert sum("1 entries" in note and "train/cat/scan.dcm" in note for note in examples.notes) == 1


def test_broken_link_is_a_bad_file(tree: Callable) -> None:
    root = tree()
    os.symlink("nowhere", root / "train" / "cat" / "link.png")
    with pytest.raises(UserError, match=r"link\.png \(No such file"):
        load(config(root), "train")


def test_table_gives_patients(tree: Callable) -> None:
    examples = load(config(tree(table=True)), "val")
    assert examples.patients_known
    assert examples.patients == tuple(f"val-{label}-{number}" for label in ("cat", "dog") for number in (0, 0, 1, 1))
    assert examples.notes == ()


def test_table_and_folders_must_agree_on_every_file(tree: Callable) -> None:
    root = tree(table=True)
    rows = read_table(root)
    write(root / "train" / "cat" / "extra.png")
    write_table(root, [*rows, rows[0], ["gone.png", "dog", "p", "val", "0"], ["lost.png", "dog", "p", "test", "0"]])
    with pytest.raises(UserError) as caught:
        load(config(root), "train")
    message = str(caught.value)
    assert "4 files" in message
    for part in ("train/cat/extra.png (file,", "val/dog/gone.png (row,", "test/dog/lost.png (row,", "(2 rows)"):
        assert part in message


def test_table_line_without_a_fold_is_named(tree: Callable) -> None:
    root = tree(table=True)
    rows = read_table(root)
    rows[3][4] = ""
    write_table(root, rows)
    with pytest.raises(UserError, match="line 5"):
        load(config(root), "train")


def test_table_without_a_column_is_refused(tree: Callable) -> None:
    root = tree(table=True)
    write_table(root, read_table(root), header=("file", "label", "who", "split", "fold"))
    with pytest.raises(UserError, match="lacks the columns patient"):
        load(config(root), "train")


def test_table_that_is_no_text_is_refused(tree: Callable) -> None:
    root = tree()
    (root / "folds.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="cannot be read"):
        load(config(root), "train")


@pytest.mark.parametrize("table", [False, True])
def test_without_val_a_fixed_part_of_train_is_held_out(tree: Callable, table: bool) -> None:
    root = tree(48, splits=("train", "test"), table=table)
    train, val = load(config(root, seed=1), "train"), load(config(root, seed=2), "val")
    assert not set(train.names) & set(val.names)
    assert len(train) + len(val) == 96
    assert Counter(val.labels.tolist()) == {0: 6, 1: 6}
    assert {name.split("/")[0] for name in val.names} == {"train"}
    assert not set(train.patients) & set(val.patients)
    assert val.patients_known == table
    for notes in (train.notes, val.notes):
        assert any("no val split: 12 images" in note for note in notes)
        assert any("by patient" in note for note in notes) == table
        assert any("image-level" in note for note in notes) != table
    assert load(config(root), "test").notes == (() if table else ("no patient ids: the split is image-level",))


def test_fold_replaces_the_split_folders(tree: Callable) -> None:
    root = tree(40, table=True)
    fold_of = {f"{split}/{label}/{file}": int(fold) for file, label, _, split, fold in read_table(root)}
    for fold in (0, 3):
        lists = {split: list_files(config(root, fold=fold), split) for split in SPLITS}
        assert {name for name, number in fold_of.items() if number == fold} == set(lists["test"].names)
        assert sorted(name for files in lists.values() for name in files.names) == sorted(fold_of)
        assert {name.split("/")[0] for name in lists["train"].names} == set(SPLITS)
        for files in lists.values():
            assert [files.classes[label] for label in files.labels] == [name.split("/")[1] for name in files.names]


def test_fold_that_is_not_there_is_an_error(tree: Callable) -> None:
    root = tree(10, table=True)
    with pytest.raises(UserError, match="allowed: 0, 1, 2, 3, 4, or -1"):
        load(config(root, fold=7), "train")
    (root / "folds.csv").unlink()
    with pytest.raises(UserError, match=r"folds\.csv does not exist"):
        load(config(root, fold=0), "train")


def test_cxr3_folds_cover_every_image_once_in_test_and_fold_0_is_the_shipped_split() -> None:
    cxr3 = real_data("cxr3")
    names: list[str] = []
    for fold in range(5):
        files = {split: list_files(config(cxr3, fold=fold), split) for split in SPLITS}
        assert sum(len(part.names) for part in files.values()) == 1125
        assert not set(files["train"].patients) & set(files["val"].patients)
        assert not (set(files["train"].patients) | set(files["val"].patients)) & set(files["test"].patients)
        names += files["test"].names
        if fold == 0:
            assert [len(files[split].names) for split in SPLITS] == [787, 113, 225]
            assert all(files[split] == list_files(config(cxr3), split) for split in SPLITS)
    assert len(set(names)) == len(names) == 1125


def test_cxr3_decodes(tmp_path: Path) -> None:
    examples = load(config(real_data("cxr3"), image_size=32, cache_dir=str(tmp_path)), "val")
    assert examples.images.shape == (113, 32, 32, 1)
    assert np.bincount(examples.labels).tolist() == [13, 50, 50]
    assert len(set(examples.patients)) == 76
    assert 20 < examples.images.mean() < 230
