"""Which images a folder, a pattern of names or a file stands for."""

import os
from pathlib import Path

import pytest

from covidjax.errors import UserError
from covidjax.runs.images import list_images
from tests.commands import write_image
from tests.runs.untrained import SIZES


def test_folder_is_listed_with_its_folders_and_without_what_is_no_image(images: Path, tmp_path: Path) -> None:
    found = list_images(images)
    assert found.names == tuple(sorted(SIZES))
    assert found.ignored == 1
    assert list_images(images / "a.png").names == ("a.png",)


def test_folder_without_images_and_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="there is no"):
        list_images(tmp_path / "missing")


def test_patterns_of_names_are_listed_as_folders_are(images: Path) -> None:
    found = list_images(images / "**" / "*.[pt]*")
    assert found.names == ("a.png", "deep/c.tif", "deep/d.png")
    assert found.ignored == 1  # notes.txt
    assert list_images(images / "deep" / "?.tif").names == ("c.tif",)
    with pytest.raises(UserError, match=r"\*.gif matches no image: allowed are files ending in"):
        list_images(images / "*.gif")


def test_linked_folders_are_predicted_and_pipes_masks_and_loops_are_named(images: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "store" / "f.png", seed=0)
    (images / "hospital").symlink_to(tmp_path / "store")
    (images / "deep" / "loop").symlink_to(images)
    os.mkfifo(images / "pipe.png")
    write_image(images / "a_mask.png", seed=0)
    found = list_images(images)
    assert found.names == tuple(sorted((*SIZES, "hospital/f.png")))
    told = "; ".join(found.notes)
    for part in (
        ": 1, deep/loop",
        ": 1, pipe.png",
        ": 1, .hidden.png",
        "1 files are masks of images, and were left out",
    ):
        assert part in told
