"""Folders of images by class: layouts, the table of patients, splits, and what is refused."""

import csv
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from covidjax.data import sources
from covidjax.data.examples import SPLITS, Examples
from covidjax.errors import UserError
from tests.data.images import dataset_config as config
from tests.data.images import opened_below, real_data, write_rows
from tests.data.images import write_ramp as write

CLASS_HEADER = ("file", "label", "patient", "split", "fold")


def load(root: Path, split: str, **changes: object) -> Examples:
    return sources.load(config(root, **changes), split)


def read_table(root: Path) -> list[list[str]]:
    with (root / "folds.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


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
            write_rows(root / "folds.csv", CLASS_HEADER, rows)
        return root

    return build


def test_labels_and_names_follow_the_folders(tree: Callable) -> None:
    root = tree(3)
    for suffix in ("JPG", "jpeg", "Bmp"):
        write(root / "train" / "cat" / f"x.{suffix}")
    examples = load(root, "train")
    assert (examples.classes, len(examples)) == (("cat", "dog"), 9)
    assert list(examples.names) == sorted(examples.names)
    for name, label in zip(examples.names, examples.labels, strict=True):
        assert (root / name).is_file()
        assert name.split("/")[:2] == ["train", examples.classes[label]]
    assert not examples.patients_known
    assert examples.patients == examples.names
    assert "no patient ids: the split is image-level" in examples.notes


def test_other_splits_are_never_opened_and_their_faults_do_not_stop_training(tree: Callable) -> None:
    root = tree()
    (root / "test" / "cat" / "test0.png").write_bytes(b"")
    with opened_below(root) as opened:
        assert len(load(root, "train")) == 8
    assert {name.split("/")[0] for name in opened} == {"train"}
    with pytest.raises(UserError, match=r"test0\.png"):
        load(root, "test")


@pytest.mark.parametrize("missing", ["root", "train", "test"])
def test_missing_folder_is_named_with_the_layout(tree: Callable, missing: str) -> None:
    root = tree(splits=tuple(split for split in SPLITS if split != missing))
    path = root.parent / "nowhere" if missing == "root" else root / missing
    with pytest.raises(UserError, match=f"{path} .*<class>/<image>"):
        load(path if missing == "root" else root, "test")
    if missing == "test":
        assert len(load(root, "train")) == 8


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/a.png",), "has no class folders; expected layout"),
        (("train/images/a.png", "train/masks/a.png"), r"masks, which are no classes: .*model\.name='unet'"),
        (("train/cat/a.png", "val/cow/notes.txt"), "without images: .*/root/val/cow"),
        (("train/cat/a.png", "train/dog/a.png", "test/cow/a.png"), "train lacks: cow; allowed: cat, dog"),
    ],
)
def test_wrong_folders_are_named(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for file in files:
        path = tmp_path / "root" / file
        write(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "root", "train")


def test_a_class_may_be_absent_from_test_but_needs_a_good_training_image(tree: Callable) -> None:
    root = tree(2)
    for path in (root / "test" / "cat").iterdir():
        path.unlink()
    (root / "test" / "cat").rmdir()
    examples = load(root, "test")
    assert (examples.classes, set(examples.labels)) == (("cat", "dog"), {1})
    for path in (root / "train" / "cat").iterdir():
        path.write_bytes(b"bad")
    with pytest.raises(UserError, match="left in class cat"):
        load(root, "train", skip_bad=True)


def test_ignored_entries_are_noted_and_hidden_ones_passed_over_and_a_broken_link_is_bad(tree: Callable) -> None:
    root = tree()
    (root / "train" / "cat" / "scan.nii").write_bytes(b"")
    (root / "train" / "cat" / "._train0.png").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    examples = load(root, "train")
    assert len(examples) == 8
    assert sum("1 entries" in note and "train/cat/scan.nii" in note for note in examples.notes) == 1
    os.symlink("nowhere", root / "train" / "cat" / "link.png")
    with pytest.raises(UserError, match=r"link\.png \(No such file"):
        load(root, "train")


def test_table_gives_patients(tree: Callable) -> None:
    examples = load(tree(table=True), "val")
    assert examples.patients_known
    assert examples.patients == tuple(f"val-{label}-{number}" for label in ("cat", "dog") for number in (0, 0, 1, 1))
    assert examples.notes == ()


def test_table_and_folders_must_agree_on_every_file(tree: Callable) -> None:
    root = tree(table=True)
    rows = read_table(root)
    write(root / "train" / "cat" / "extra.png")
    added = [rows[0], ["gone.png", "dog", "p", "val", "0"], ["lost.png", "dog", "p", "test", "0"]]
    write_rows(root / "folds.csv", CLASS_HEADER, [*rows, *added])
    with pytest.raises(UserError) as caught:
        load(root, "train")
    for part in ("4 files", "train/cat/extra.png (file,", "dog/gone.png (row,", "dog/lost.png (row,", "(2 rows)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("train-cat-0,train,0", "train-cat-0,train,", 1), "line 2: needs a patient, and a"),
        (lambda text: text.replace("patient", "who", 1), "lacks the columns patient"),
        (lambda text: text.replace("train-cat-0", "", 1), "line 2: needs a patient"),
        (lambda text: text.replace(",val,", ",dev,", 1), "split is 'dev'; allowed: train, val, test"),
        (lambda text: text + "\udcff", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused(tree: Callable, change: Callable[[str], str], message: str) -> None:
    table = tree(table=True) / "folds.csv"
    table.write_bytes(change(table.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        load(table.parent, "train")


@pytest.mark.parametrize("table", [False, True])
def test_without_val_a_fixed_part_of_train_is_held_out(tree: Callable, table: bool) -> None:
    root = tree(48, splits=("train", "test"), table=table)
    train, val = load(root, "train", seed=1), load(root, "val", seed=2)
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
    assert load(root, "test").notes == (() if table else ("no patient ids: the split is image-level",))


def test_fold_replaces_the_split_folders(tree: Callable) -> None:
    root = tree(40, table=True)
    fold_of = {f"{split}/{label}/{file}": int(fold) for file, label, _, split, fold in read_table(root)}
    for fold in (0, 3):
        lists = {split: sources.listed(config(root, fold=fold), split) for split in SPLITS}
        assert {name for name, number in fold_of.items() if number == fold} == set(lists["test"].names)
        assert sorted(name for files in lists.values() for name in files.names) == sorted(fold_of)
        assert {name.split("/")[0] for name in lists["train"].names} == set(SPLITS)
        for files in lists.values():
            assert [files.classes[label] for label in files.labels] == [name.split("/")[1] for name in files.names]
    with pytest.raises(UserError, match="allowed: 0, 1, 2, 3, 4, or -1"):
        load(root, "train", fold=7)
    (root / "folds.csv").unlink()
    with pytest.raises(UserError, match=r"folds\.csv does not exist"):
        load(root, "train", fold=0)


def test_cxr3_folds_cover_every_image_once_in_test_and_fold_0_is_the_shipped_split(tmp_path: Path) -> None:
    cxr3 = real_data("cxr3")
    names: list[str] = []
    for fold in range(5):
        files = {split: sources.listed(config(cxr3, fold=fold), split) for split in SPLITS}
        assert sum(len(part.names) for part in files.values()) == 1125
        patients = {split: set(part.patients) for split, part in files.items()}
        assert len(set.union(*patients.values())) == sum(map(len, patients.values()))
        names += files["test"].names
        if fold == 0:
            assert [len(files[split].names) for split in SPLITS] == [787, 113, 225]
            assert all(files[split] == sources.listed(config(cxr3), split) for split in SPLITS)
    assert len(set(names)) == len(names) == 1125
    examples = load(cxr3, "val", image_size=32, cache_dir=str(tmp_path))
    assert np.bincount(examples.labels).tolist() == [13, 50, 50]
    assert len(set(examples.patients)) == 76
    assert 20 < examples.images.mean() < 230
