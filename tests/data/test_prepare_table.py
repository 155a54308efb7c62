"""A data set of any images with a table: classes, names of files, and what the table leaves out."""

import collections
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from covidjax.errors import UserError
from tests.data.images import write_image, write_rows

pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
from covidjax.data.datasets.prepare import load_builder
from covidjax.data.datasets.records import Listing


def check(root: Path, name: str = "csv") -> tuple[Listing, tuple[str, ...]]:
    """The checked listing of a table, and its classes; nothing is written."""
    variant = "masks" if name == "csv/masks" else "labels"
    builder = load_builder("csv")(data_dir=root.parent / "data", config=variant, file_format="array_record")
    return builder.check(root), builder.CLASSES


def make(root: Path, labels: Sequence[str], splits: Sequence[str] = ()) -> Path:
    """root/<number>.png, all different, with a row each."""
    for number in range(len(labels)):
        write_image(root / f"{number}.png", number)
    rows = [[f"{number}.png", label, *splits[number : number + 1]] for number, label in enumerate(labels)]
    write_rows(root / "images.csv", ["path", "label", *["split"] * bool(splits)], rows)
    return root


def test_classes_that_are_numbers_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    assert check(make(tmp_path / "set", ["10", "0", "2", "1"] * 10))[1] == ("0", "1", "2", "10")


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        (["a"] * 20, [], "has one class only, a"),
        (
            ["No Finding", "Mass|Node", "Node|Mass"] * 10,
            [],
            r"several findings: Mass\|Node, Node\|Mass; .*make one",
        ),
        (["ill", "Ill", "healthy"] * 10, [], "differ in case or spaces only: 'Ill' and 'ill'"),
        (["a", "b"] * 9 + ["c", "c"], ["train"] * 18 + ["test"] * 2, r"no training image is of class c \(2 images\)"),
        (["a", "b"] * 19 + ["c"], [], r"no training image is of class c \(1 images\): add some, or leave the class"),
    ],
)
def test_classes_that_cannot_be_learnt_are_refused(
    tmp_path: Path, labels: Sequence[str], splits: Sequence[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        for attempt in range(8):  # where one image of a class is drawn for test depends on the order of the rows
            turned = [*labels[-attempt:], *labels[:-attempt]] if not splits else labels
            check(make(tmp_path / f"set{attempt}", turned, splits))


def test_a_table_names_files_by_other_code_points_and_by_their_escapes(tmp_path: Path) -> None:
    root = make(tmp_path / "set", ["a", "b"] * 10)
    (root / "0.png").rename(root / "e\u0301.png")
    (root / "1.png").rename(root / os.fsdecode(b"r\xf6.png"))
    text = (root / "images.csv").read_text().replace("0.png,a", "\xe9.png,a", 1).replace("\n1.png", "\nr\\xf6.png")
    (root / "images.csv").write_text(text)
    names = {record.name for record in check(root)[0].records}
    assert {"\xe9.png", "r\\xf6.png"} < names
    "".join(names).encode()


def test_images_that_the_table_does_not_name_are_counted_by_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "set", ["a", "b"] * 10)
    for name in ("extra/1", "extra/2", "more"):
        write_image(root / f"{name}.png")
    assert (
        "images.csv does not name 3 of the images that are there: 2 in extra, 1 in the folder itself"
        in check(root)[0].notes
    )


def test_copies_in_two_splits_or_classes_are_named(tmp_path: Path) -> None:
    root = make(tmp_path / "set", ["a", "b"] * 10, ["train"] * 14 + ["val", "test"] * 3)
    (root / "15.png").write_bytes((root / "1.png").read_bytes())
    (root / "3.png").write_bytes((root / "2.png").read_bytes())
    notes = "\n".join(check(root)[0].notes)
    assert "1 images are in two splits, byte for byte: 1.png (train) = 15.png (test); " in notes
    assert "1 images are in two classes, byte for byte: 2.png (a) = 3.png (b); one of the labels is wrong" in notes


def test_a_long_list_of_faults_is_ten_names_and_a_count(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    write_rows(root / "images.csv", ("path", "label"), [(f"{number}.png", "a") for number in range(500)])
    with pytest.raises(UserError, match="500 problems, .*line 11: 9.png is not in .* and 490 more"):
        check(root)


def test_listing_a_folder_takes_steps_in_proportion_to_its_files(tmp_path: Path) -> None:
    def calls(count: int) -> int:
        """How many functions, of Python and of C, are called for so many images and so many other files."""
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").touch()
            (folder / f"{number}.txt").touch()
        listing, counted = Listing(), collections.Counter[str]()
        sys.setprofile(lambda frame, event, function: counted.update([event]))
        try:
            found = listing.images(folder)
        finally:
            sys.setprofile(None)
        assert len(found) == count
        assert f"{count} other entries were ignored" in listing.notes[0]
        return counted["call"] + counted["c_call"]

    few, many = calls(50), calls(400)
    assert 8 * few < many < 12 * few  # the sorting takes a logarithm more; pairs of files would be 64 times as many
