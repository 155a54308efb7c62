"""Folders of images by class: layouts, the table of patients, splits, and what is refused."""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from covidjax.data import sources
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.listing import class_order
from covidjax.errors import UserError
from tests.data.images import dataset_config as config
from tests.data.images import opened_below, write_rows
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
    with pytest.raises(UserError, match=f"{path}[ :].*<class>/<image>"):
        load(path if missing == "root" else root, "test")
    if missing == "test":
        assert len(load(root, "train")) == 8
    if missing == "root":
        with pytest.raises(UserError, match="root/train does: name the folder that it is in"):
            load(root.parent, "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/a.png",), "has no class folders; expected layout"),
        (("train/images/a.png", "train/masks/a.png"), r"masks, which are no classes: .*model\.name='unet'"),
        (("train/cat/a.png", "val/cow/notes.txt"), "without images: {root}/val/cow"),
        (("train/cat/a.png", "train/dog/a.png", "test/cow/a.png"), "train lacks: cow; allowed: cat, dog"),
    ],
)
def test_wrong_folders_are_named(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for file in files:
        path = tmp_path / "root" / file
        write(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
    with pytest.raises(UserError, match=message.format(root=re.escape(str(tmp_path / "root")))):
        load(tmp_path / "root", "train")


def test_a_class_may_be_absent_from_test_but_needs_a_good_training_image(tree: Callable) -> None:
    root = tree(2)
    for path in (root / "test" / "cat").iterdir():
        path.unlink()
    (root / "test" / "cat").rmdir()
    examples = load(root, "test")
    assert (examples.classes, set(examples.labels)) == (("cat", "dog"), {1})
    assert "test has no image of cat" in examples.notes
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


def test_masks_beside_images_of_a_class_are_left_out_and_said(tree: Callable) -> None:
    root = tree()
    for name in ("train0_mask", "train0_mask_1", "lost_mask"):
        write(root / "train" / "cat" / f"{name}.png")
    write(root / "train" / "dog" / "masks" / "train1.png")
    examples = load(root, "train")
    assert (len(examples), Counter(examples.labels.tolist())) == (8, {0: 4, 1: 4})
    assert any(
        note.startswith("4 files are masks of images, and were left out: train/cat/lost") for note in examples.notes
    )


def test_images_deeper_below_a_class_are_its_own_and_those_in_no_class_folder_are_counted(tree: Callable) -> None:
    root = tree()
    for name in ("train/cat/p1/0", "train/cat/p1/left/0", "train/loose", "extra/1", "extra/2", "above"):
        write(root / f"{name}.png", 99)
    files = sources.listed(config(root), "train")
    assert [name for name in files.names if "/p1/" in name] == ["train/cat/p1/0.png", "train/cat/p1/left/0.png"]
    assert [files.labels[files.names.index(f"train/cat/p1/{name}.png")] for name in ("0", "left/0")] == [0, 0]
    (note,) = (note for note in files.notes if "not read" in note)
    assert note.startswith("4 images in no class folder of train, val or test are not read: ")
    assert note.endswith("1 in the folder itself, 2 in extra, 1 in train")


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "dev"])
def test_a_validation_folder_is_used_however_it_is_spelled(tree: Callable, name: str) -> None:
    root = tree()
    (root / "val").rename(root / name)
    examples = load(root, "val")
    assert examples.names == tuple(f"{name}/{label}/val{n}.png" for label in ("cat", "dog") for n in range(4))
    assert f"{name}/ is taken as the val split" in examples.notes
    rows = [(f"val{n}.png", label, f"p{n}", "val", 0) for label in ("cat", "dog") for n in range(4)]
    rows += [
        (f"{s}{n}.png", label, f"{s}{n}", s, 1) for s in ("train", "test") for label in ("cat", "dog") for n in range(4)
    ]
    write_rows(root / "folds.csv", CLASS_HEADER, rows)
    assert len(load(root, "val")) == 8


def test_a_folder_is_not_in_two_splits_or_classes_by_a_link(tree: Callable) -> None:
    root = tree(splits=("train", "test"))
    (root / "val").symlink_to("test")
    with pytest.raises(UserError, match="val is a link to a folder that is read already: a split needs its own"):
        load(root, "train")
    (root / "val").unlink()
    (root / "test" / "cow").symlink_to("../train/cat")
    with pytest.raises(UserError, match="test/cow: links to folders that are read already; a class needs its own"):
        load(root, "train")


def test_linked_class_folders_are_followed(tree: Callable) -> None:
    root = tree()
    (root / "train" / "cat").rename(root.parent / "store")
    (root / "train" / "cat").symlink_to(root.parent / "store")
    assert len(load(root, "train")) == 8


def test_classes_that_are_numbers_are_in_the_order_of_their_values(tree: Callable) -> None:
    root = tree()
    for name in ("2", "10", "-1", "0.5"):
        write(root / "train" / name / "0.png")
    for name in ("cat", "dog"):
        for split in SPLITS:
            (root / split / name).rename(root / split / {"cat": "1", "dog": "0"}[name])
    assert load(root, "train").classes == ("-1", "0", "0.5", "1", "2", "10")
    assert class_order(("grade10", "grade2", "grade1", "b")) == ("b", "grade1", "grade2", "grade10")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat",), "has one class only, cat"),
        (("A", "B", "A|B"), r"name several findings: A\|B; an image has one class here"),
        (("Mass", "Mass, Node"), "name several findings: Mass, Node"),
        (("Ill", "healthy", "ill "), "differ in case or spaces only: 'Ill' and 'ill '"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(tmp_path: Path, classes: tuple[str, ...], message: str) -> None:
    for number, name in enumerate(classes):
        write(tmp_path / "root" / "train" / name / "0.png", number)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "root", "train")


def test_names_of_classes_and_files_that_are_no_utf8_are_escaped_in_every_text(tree: Callable) -> None:
    root = tree()
    for split in SPLITS:
        (root / split / "dog").rename(root / split / os.fsdecode(b"L\xe9sion"))
    (root / "train" / "cat" / "train0.png").rename(root / "train" / "cat" / os.fsdecode(b"r\xf6.png"))
    examples = load(root, "train")
    assert examples.classes == ("L\\xe9sion", "cat")
    assert "train/cat/r\\xf6.png" in examples.names
    assert "".join(examples.names).isascii()
    assert len(set(examples.names)) == len(examples) == 8
    assert sources.listed(config(root), "test").classes == examples.classes


def test_a_table_and_a_folder_may_spell_one_name_with_other_code_points(tree: Callable) -> None:
    root = tree(table=True)
    (root / "val" / "cat" / "val0.png").rename(root / "val" / "cat" / "vale\u0301.png")
    rows = [["val\xe9.png", *row[1:]] if row[:2] == ["val0.png", "cat"] else row for row in read_table(root)]
    write_rows(root / "folds.csv", CLASS_HEADER, rows)
    assert "val/cat/val\xe9.png" in load(root, "val").names
