"""A table beside class folders: patients, splits and folds, and what disagrees with the files."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from covidjax.data import sources
from covidjax.data.examples import SPLITS
from covidjax.errors import UserError
from tests.data.images import dataset_config as config
from tests.data.images import real_data, write_rows
from tests.data.images import write_ramp as write
from tests.data.test_folder import CLASS_HEADER, load, read_table, tree

__all__ = ["tree"]  # a fixture


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
    assert str(caught.value).endswith(
        "disagree on 4 files: 1 files have no row: train/cat/extra.png; 2 rows have no file: test/dog/lost.png, "
        "val/dog/gone.png; 1 files have several rows: train/cat/train0.png; mend either"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("train-cat-0,train,0", "train-cat-0,train,", 1), "line 2: needs a patient, and a"),
        (lambda text: text.replace("label", "kind", 1), "lacks the columns label; needed: .*; it has file, kind, "),
        (lambda text: text.replace("patient", "patient_id", 1), "has the column patient_id and none called patient"),
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


def test_a_table_without_patients_gives_splits_and_folds_by_image(tree: Callable) -> None:
    root = tree(40, table=True)
    rows = [(file, label, split, fold) for file, label, _, split, fold in read_table(root)]
    write_rows(root / "folds.csv", ("File", "label", "split", "fold"), rows)
    examples = load(root, "train", fold=1)
    assert (examples.patients_known, examples.patients) == (False, examples.names)
    assert "no patient ids: the split is image-level" in examples.notes


def test_a_long_list_of_faults_is_ten_names_and_a_count(tree: Callable) -> None:
    root = tree(40, table=True)
    write_rows(root / "folds.csv", CLASS_HEADER, [[row[0].removesuffix(".png"), *row[1:]] for row in read_table(root)])
    with pytest.raises(
        UserError,
        match="disagree on 480 files: 240 files have no row: .* and 230 more; 240 rows .* and 230 more; mend either",
    ) as caught:
        load(root, "train")
    assert len(str(caught.value)) < 1500
    for path in (root / "train").glob("*/*.png"):
        path.write_bytes(b"no image")
    (root / "folds.csv").unlink()
    with pytest.raises(UserError, match="80 of 80 train files are bad: .* and 70 more"):
        load(root, "train")


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
