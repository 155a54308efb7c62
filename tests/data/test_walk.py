"""The walk below a folder: links, pipes, names, what is passed over, and the masks among images."""

import os
import socket
from pathlib import Path

import pytest

from covidjax.data.walk import by_folder, masks_among, split_folders, walk
from covidjax.errors import UserError
from covidjax.files import printable


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_linked_folders_are_entered_once_and_loops_end(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    touch(root, "a/1.png")
    touch(store, "b/2.png", "deep/b/3.png")
    (root / "a" / "loop").symlink_to("..")
    (root / "again").symlink_to("a")
    (root / "linked").symlink_to(store)
    (root / "twice").symlink_to(store / "deep")
    (store / "deep" / "back").symlink_to(root)
    (root / "self").symlink_to("self")
    found = walk(root)
    assert found.images == ("a/1.png", "linked/b/2.png", "linked/deep/b/3.png")
    assert set(found.not_entered) == {"a/loop", "again", "twice", "linked/deep/back"}
    assert any(note.startswith("links to folders that are read already were not entered: 4, ") for note in found.notes)
    assert "links that lead nowhere were passed over: 1, self" in found.notes


def test_pipes_and_sockets_are_passed_over_and_a_broken_link_of_an_image_is_a_bad_file(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        found = walk(tmp_path)
    assert found.images == ("1.png", "gone.png")
    assert found.notes == ("pipes, sockets and devices were passed over: 3, link.png, pipe.png, socket",)


def test_what_systems_leave_behind_is_counted_and_a_note_names_ten(tmp_path: Path) -> None:
    touch(tmp_path, "__MACOSX/._1.png", "Thumbs.db", "1.png", *(f".hidden{number:02}.png" for number in range(11)))
    found = walk(tmp_path)
    assert (found.images, found.others, found.folders) == (("1.png",), (), ("",))
    (note,) = found.notes
    assert note.startswith("hidden entries and those of operating systems were passed over: 13, .hidden00.png, ")
    assert note.endswith(", .hidden09.png and 3 more")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.png")
    real = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"/a cannot be listed \(Permission denied\)"):
        walk(tmp_path)


def test_names_become_printable_and_lead_back_to_their_files(tmp_path: Path) -> None:
    raw = os.fsdecode(b"r\xf6ntgen.png")
    touch(tmp_path, raw, "e\u0301.png", "a\nb.png", "plain.png")
    found = walk(tmp_path)
    assert set(found.images) == {"r\\xf6ntgen.png", "\xe9.png", "a\\nb.png", "plain.png"}
    assert dict(found.paths) == {"r\\xf6ntgen.png": raw, "\xe9.png": "e\u0301.png", "a\\nb.png": "a\nb.png"}
    for name in found.images:
        name.encode()
    touch(tmp_path, "\xe9.png")
    with pytest.raises(UserError, match=r"'e\\u0301.png' and '\\xe9.png', which are the same but for code points"):
        walk(tmp_path)


def test_printable_names_are_stable() -> None:
    assert printable(printable("e\u0301\udcf6\x7f")) == printable("e\u0301\udcf6\x7f") == "\xe9\\xf6\\x7f"


@pytest.mark.parametrize(
    ("split", "name"),
    [("val", "valid"), ("val", "validation"), ("val", "Val"), ("val", "dev"), ("train", "Training"),
     ("train", "training_set"), ("test", "TESTING"), ("test", "test-set")],
)  # fmt: skip
def test_spellings_of_splits_are_known_and_said(tmp_path: Path, split: str, name: str) -> None:
    touch(tmp_path, f"{name}/1.png", "validated/1.png", "tests/1.png", "trains.png")
    assert split_folders(walk(tmp_path)) == ({split: name}, [f"{name}/ is taken as the {split} split"])
    (tmp_path / split).mkdir()
    with pytest.raises(UserError, match=f"which all are {split}: keep one"):
        split_folders(walk(tmp_path))


def test_images_are_counted_by_folder() -> None:
    assert by_folder(["a/1.png", "b/c/1.png", "a/2.png", "1.png"]) == "2 in a, 1 in b/c, 1 in the folder itself"


def test_masks_among_images_are_told_by_the_image_that_they_belong_to() -> None:
    masks = ["x_mask.png", "x_mask_1.png", "x_Mask (2).png", "x_seg.tif", "mask_x.png", "x - mask.png", "lost_mask.png"]
    images = ["x.png", "face_1.png", "y.png", "y_1.png", "unmask.png", "gt_.png"]
    assert masks_among(images + masks) == set(masks)
    assert masks_among([*images, "with_mask.png", "no_mask.png"]) == frozenset()
    nested = ["c/images/1.png", "c/masks/1.png", "c/masks/2_mask.png", "d/1.png", "d/Mask/1.png"]
    assert masks_among(nested) == {"c/masks/1.png", "c/masks/2_mask.png", "d/Mask/1.png"}
    assert masks_among(["mask/1.png", "no_mask/1.png"]) == frozenset()
