"""Folders of classes without split folders: the split is drawn, or that of a table, and stays that of its run."""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from covidjax.data import flat, sources, splits
from covidjax.data.examples import SPLITS
from covidjax.data.listing import ImageFiles
from tests.commands import user_error
from tests.data.images import dataset_config as config
from tests.data.images import opened_below, write_rows
from tests.data.images import write_ramp as write

Build = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Build:
    """Make root/<class>/<number>.png; with columns of a table, two images for each patient of one class."""

    def build(images_per_class: int = 20, columns: Sequence[str] = ()) -> Path:
        root, rows = tmp_path / "root", []
        for label in ("cat", "dog"):
            for number in range(images_per_class):
                write(root / label / f"{number:02}.png", number)
                own = {"file": f"{number:02}.png", "label": label, "patient": f"{label}{number // 2}"}
                own |= {"split": SPLITS[number % 10 // 2 % 3], "fold": str(number // 2 % 5)}
                rows.append([own[column] for column in columns])
        if columns:
            write_rows(root / "folds.csv", columns, rows)
        return root

    return build


def listed(root: Path, **changes: object) -> dict[str, ImageFiles]:
    return {split: sources.listed(config(root, **changes), split) for split in SPLITS}


def split_of(files: dict[str, ImageFiles]) -> dict[str, str]:
    return {name: split for split, part in files.items() for name in part.names}


def keep(root: Path, files: ImageFiles) -> Path:
    write_rows(root.parent / flat.RECORDED, flat.COLUMNS, files.drawn)
    return root.parent / flat.RECORDED


def test_the_split_of_a_flat_folder_is_drawn_by_image_and_said(tree: Build) -> None:
    root = tree(40)
    files = listed(root)
    assert {split: len(part.names) for split, part in files.items()} == {"train": 56, "val": 8, "test": 16}
    for part in files.values():
        assert part.classes == ("cat", "dog")
        assert Counter(part.labels)[0] == len(part.names) / 2
        assert [part.classes[label] for label in part.labels] == [name.split("/")[0] for name in part.names]
        assert "no patient ids: the split is image-level" in part.notes
        assert (
            "the folders are the classes (cat, dog), and the split is drawn by image with dataset.split_seed=0: "
            "56 train, 8 val, 16 test images"
        ) in part.notes
    names = [f"{label}/{number:02}.png" for label in ("cat", "dog") for number in range(40)]
    assert split_of(files) == dict(zip(names, splits.draw_splits([0] * 40 + [1] * 40, names), strict=True))


def test_the_seed_alone_decides_the_split_and_another_seed_gives_another(tree: Build) -> None:
    root = tree()
    first, again, other = (split_of(listed(root, split_seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert split_of(listed(root, seed=9)) == split_of(listed(root))


@pytest.mark.parametrize("fold", [-1, 3])
def test_a_table_of_patients_keeps_them_whole(tree: Build, fold: int) -> None:
    files = listed(tree(40, ("file", "label", "patient")), fold=fold)
    patients = {split: set(part.patients) for split, part in files.items()}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 40
    for part in files.values():
        assert part.patients_known
        assert any("the split is drawn by patient" in note for note in part.notes)
    assert len(files["test"].names) == 16


def test_drawn_folds_hold_every_image_once(tree: Build) -> None:
    root = tree()
    names = [name for fold in range(5) for name in listed(root, fold=fold)["test"].names]
    assert len(names) == len(set(names)) == 40
    assert "dataset.fold is 5; allowed: 0 to 4, of folds that are drawn, or -1" in user_error(listed, root, fold=5)


def test_a_table_with_splits_or_folds_decides_and_nothing_is_drawn(tree: Build) -> None:
    files = listed(tree(columns=("file", "label", "split")))
    assert split_of(files)["cat/02.png"] == "val"
    assert [part.drawn for part in files.values()] == [()] * 3
    files = listed(tree(columns=("file", "label", "patient", "fold")), fold=2)
    assert {int(name[4:6]) // 2 % 5 for name in files["test"].names} == {2}
    assert files["train"].drawn == ()


@pytest.mark.parametrize("patients", [True, False])
def test_a_recorded_split_moves_no_image_when_others_come(tree: Build, patients: bool) -> None:
    root = tree(columns=("file", "label", "patient") if patients else ())
    before = listed(root)
    recorded = keep(root, before["train"])
    for number in range(30):
        write(root / ("cat", "mouse")[number % 2] / f"new{number}.png")
    after = {split: sources.listed(config(root), split, recorded=recorded) for split in SPLITS}
    for split in SPLITS:
        assert (after[split].rows, after[split].classes) == (before[split].rows, ("cat", "dog"))
        (note,) = (note for note in after[split].notes if "not used" in note)
        assert note.startswith("30 images are new since the split was drawn, and are not used: cat/new0.png, ")
        assert note.endswith(" and 20 more")
        assert set(before[split].notes) < set(after[split].notes)


def test_an_image_that_is_gone_or_a_lost_record_is_refused(tree: Build) -> None:
    root = tree()
    files = listed(root)
    recorded, name = keep(root, files["train"]), files["test"].names[0]
    (root / name).unlink()
    assert len(sources.listed(config(root), "val", recorded=recorded).names) == len(files["val"].names)
    message = user_error(sources.listed, config(root), "test", recorded=recorded)
    assert f"1 test images of {recorded} are gone from {root}: {name}; put them back" in message
    recorded.unlink()
    assert f"{recorded}, which holds the split" in user_error(sources.listed, config(root), "val", recorded=recorded)


def test_a_record_is_a_table_that_the_folder_may_have(tree: Build) -> None:
    root = tree()
    before = listed(root, split_seed=7)
    keep(root, before["train"]).rename(root / "folds.csv")
    after = listed(root)
    assert split_of(after) == split_of(before)
    assert after["train"].drawn == ()
    assert not after["train"].patients_known


def test_names_with_commas_spaces_and_quotes_survive_the_record(tree: Build) -> None:
    root = tree()
    for name in (' "a", b .png', "\u00e9, 'x'.png"):
        write(root / "cat" / name)
    (root / "dog").rename(root / " dog ")
    before = listed(root)
    recorded = keep(root, before["train"])
    for split in SPLITS:
        after = sources.listed(config(root), split, recorded=recorded)
        assert (after.rows, after.classes) == (before[split].rows, (" dog ", "cat"))


def test_listing_opens_no_image_and_loading_those_of_the_split_alone(tree: Build) -> None:
    root = tree()
    with opened_below(root) as opened:
        assert len(sources.load(config(root), "val").images) == 4
    assert opened == set(listed(root)["val"].names)


def test_what_is_no_class_is_told(tree: Build) -> None:
    root = tree()
    write(root / "loose.png")
    write(root / "cat" / "masks" / "00.png")
    write(root / "dog" / "00_mask.png")
    write(root / "dog" / "left" / "deep.png")
    (root / "cat" / "readme.txt").touch()
    (root / "notes").mkdir()
    files = listed(root)
    assert sum(len(part.names) for part in files.values()) == 41
    assert "dog/left/deep.png" in split_of(files)
    for note in (
        "1 entries are no images by their ending and were ignored: cat/readme.txt",
        "1 images in no class folder are not read: 1 in the folder itself",
        "2 files are masks of images, and were left out: cat/masks/00.png, dog/00_mask.png",
        "1 folders without images are no classes: notes",
    ):
        assert note in files["train"].notes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("images/a", "masks/a"), "images and their masks, which are no classes: choose a network for segmentation"),
        (("Imgs/a", "Labels/a"), "images and their masks, which are no classes: choose a network for segmentation"),
        (
            ("data/cat/a", "data/dog/a"),
            "if the folders in it are the classes, name {root}/data; images found: 1 in",
        ),
        (
            ("a", "b"),
            "launch/prepare.py --dataset=csv; images found: 2 in the folder itself; expected layout",
        ),
        (("cat/train/a", "dog/train/a"), "cat/train, dog/train are called like splits, which stand above the classes"),
        (("cat/a",), "has one class only, cat"),
        (("cat/dev/a", "dog/a"), "cat/dev are called like splits, which stand above the classes; images found: 1 in"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found_and_what_helps(
    tmp_path: Path, names: Sequence[str], message: str
) -> None:
    root = tmp_path / "root"
    for name in names:
        write(root / f"{name}.png")
    told = user_error(sources.listed, config(root), "train")
    assert message.format(root=root) in told


def test_a_class_with_too_few_images_or_patients_is_named_with_what_to_do(tree: Build) -> None:
    root = tree()
    write(root / "rare" / "0.png")
    told = user_error(listed, root)
    assert f"{root} has too few images to draw train and test of class rare (1 images): add some, or write the" in told
    assert f"a column split in {root / 'folds.csv'}, or folders train, val, test" in told
    (root / "rare" / "0.png").unlink()
    rows = [(f"{number:02}.png", label, label) for label in ("cat", "dog") for number in range(20)]
    write_rows(root / "folds.csv", ("file", "label", "patient"), rows)
    assert f"{root}: 2 patients are too few for 5 folds; add some" in user_error(listed, root)
    write_rows(root / "folds.csv", ("file", "label"), [row[:2] for row in rows])
    assert listed(root)["train"].names
    for path in [*root.glob("*/*[1-9].png"), root / "folds.csv"]:
        path.unlink()
    assert f"{root}: 4 images are too few for 5 folds; add some" in user_error(listed, root)


def test_the_drawn_rows_reach_the_examples(tree: Build) -> None:
    root = tree()
    drawn = sources.load(config(root), "train").drawn
    assert {f"{label}/{file}": split for file, label, _, split in drawn} == split_of(listed(root))
    keep(root, listed(root)["train"])
    with (root.parent / flat.RECORDED).open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["file", "label", "patient", "split"]
