"""Files of a split to one array: order, bad files, the cache and the fingerprint."""

import dataclasses
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax.data import decode as decode_module
from covidjax.data.decode import decode
from covidjax.data.listing import ImageFiles, Row
from covidjax.data.picture import ImageSpec, decode_image
from covidjax.errors import UserError
from tests.data.images import dataset_config, encoded, gray, noise


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[ImageFiles, ConfigDict]]:
    """Write the contents as files a/0.png, a/1.png, ... and return their list and a dataset config."""

    def build(contents: list[bytes], **changes: object) -> tuple[ImageFiles, ConfigDict]:
        root = tmp_path / "root"
        (root / "a").mkdir(parents=True, exist_ok=True)
        names = tuple(f"a/{index:03}.png" for index in range(len(contents)))
        for name, content in zip(names, contents, strict=True):
            (root / name).write_bytes(content)
        rows = tuple(Row(name, "train", "xy"[index % 2]) for index, name in enumerate(names))
        files = ImageFiles(root, rows, ("x", "y"), False, ("a note",), split="train")
        return files, dataset_config(root, **changes)

    return build


@pytest.fixture
def decoded_count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of decode_image."""
    calls: list[int] = []

    def counting(content: bytes, spec: ImageSpec) -> np.ndarray:
        calls.append(1)
        return decode_image(content, spec)

    monkeypatch.setattr(decode_module, "decode_image", counting)
    return calls


def test_images_stay_in_the_order_of_their_names(make: Callable) -> None:
    files, dataset = make([encoded(gray(value)) for value in range(50)])
    examples = decode(files, dataset)
    assert examples.images[:, 0, 0, 0].tolist() == list(range(50))
    assert examples.images.dtype == np.uint8
    assert examples.labels.tolist() == [0, 1] * 25
    assert examples.labels.dtype == np.int32
    assert (examples.names, examples.patients, examples.patients_known) == (files.names, files.names, False)
    assert (examples.split, examples.classes, examples.notes) == ("train", ("x", "y"), ("a note",))


def test_all_bad_files_are_named_at_once(make: Callable) -> None:
    good = encoded(gray(1))
    files, dataset = make([b"", good, b"text", good, encoded(noise(), "jpg")[:-400]])
    (files.root / files.names[3]).unlink()
    with pytest.raises(UserError) as caught:
        decode(files, dataset)
    message = str(caught.value)
    assert "4 of 5" in message
    assert "dataset.skip_bad=true" in message
    assert "\n" not in message
    for index, reason in (
        (0, "the file is empty"),
        (2, "not a JPEG"),
        (3, "No such file"),
        (4, "image file is truncated"),
    ):
        assert f"{files.root / files.names[index]} ({reason}" in message
    assert files.names[1] not in message


def test_skip_bad_drops_and_notes_the_bad_files(make: Callable, decoded_count: list[int]) -> None:
    contents = [b"", encoded(gray(10)), b"text", encoded(gray(20)), encoded(gray(30))]
    files, dataset = make(contents, skip_bad=True)
    for start in range(2):
        examples = decode(files, dataset)
        assert examples.names == (files.names[1], files.names[3], files.names[4])
        assert examples.images[:, 0, 0, 0].tolist() == [10, 20, 30]
        assert examples.labels.tolist() == [1, 1, 0]
        assert len(examples.notes) == 2
        assert all(name in examples.notes[1] for name in (files.names[0], files.names[2]))
        assert len(decoded_count) == 5, f"start {start}"
    dataset.skip_bad = False
    with pytest.raises(UserError, match="2 of 5"):
        decode(files, dataset)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_only_bad_files_is_an_error(make: Callable, skip_bad: bool) -> None:
    with pytest.raises(UserError, match="no good file"):
        decode(*make([b"", b"text"], skip_bad=skip_bad))


def test_second_start_decodes_nothing(make: Callable, decoded_count: list[int]) -> None:
    files, dataset = make([encoded(gray(value)) for value in (1, 2, 3)])
    first = decode(files, dataset)
    second = decode(files, dataset)
    assert len(decoded_count) == 3
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable
    np.testing.assert_array_equal(first.images, second.images)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("change", ["pixel", "image_size", "channels", "crop", "enhancement", "name"])
def test_cache_follows_content_and_settings(make: Callable, decoded_count: list[int], change: str) -> None:
    contents = [encoded(gray(value)) for value in (1, 2)]
    files, dataset = make(contents)
    before = decode(files, dataset)
    if change == "pixel":
        files, dataset = make([contents[0], encoded(gray(77))])
    elif change == "name":
        (files.root / "a" / "other.png").write_bytes(contents[1])
        files = dataclasses.replace(files, rows=(files.rows[0], dataclasses.replace(files.rows[1], name="a/other.png")))
    else:
        dataset[change] = {"image_size": 4, "channels": 3, "crop": "pad", "enhancement": "clahe"}[change]
    after = decode(files, dataset)
    assert len(decoded_count) == 4
    assert after.fingerprint != before.fingerprint
    assert after.images.shape[1:] == (dataset.image_size, dataset.image_size, dataset.channels)
    if change == "pixel":
        assert after.images[:, 0, 0, 0].tolist() == [1, 77]


def test_fingerprint_follows_labels_and_patients(make: Callable) -> None:
    files, dataset = make([encoded(gray(value)) for value in (1, 2)])
    swapped = dataclasses.replace(files, rows=tuple(dataclasses.replace(row, label="y") for row in files.rows))
    patients = tuple(dataclasses.replace(row, patient="p") for row in files.rows)
    known = dataclasses.replace(files, rows=patients, patients_known=True)
    assert len({decode(variant, dataset).fingerprint for variant in (files, swapped, known)}) == 3


def test_fingerprint_of_the_same_files_is_what_it_was(make: Callable) -> None:
    """Pinned: run.json of earlier runs holds it, and a run goes on only where it is the same."""
    found = decode(*make([encoded(gray(value), "bmp") for value in (1, 2)])).fingerprint
    assert found == "d934a932cb5eea8930d7d82a31addb1d9e9a545068fe708dc92b22550b51da20"


def test_a_damaged_cache_is_rebuilt_and_said(
    make: Callable, decoded_count: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """What else is damage: `test_store.py`."""
    files, dataset = make([encoded(gray(value)) for value in (1, 2)])
    decode(files, dataset)
    (notes,) = Path(dataset.cache_dir).glob("images/*/notes.json")
    notes.write_text('[[0, "so it says"]]')
    capsys.readouterr()
    for _ in range(2):
        assert decode(files, dataset).images[:, 0, 0, 0].tolist() == [1, 2]
    assert len(decoded_count) == 4
    assert capsys.readouterr().err.count("is damaged (") == 1


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("problem", ["folder", "full", "full at the end"])
def test_an_unwritable_cache_is_noted_and_done_without(
    make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    files, dataset = make([encoded(gray(10)), b"", encoded(gray(30))], skip_bad=True)
    if problem == "folder":
        (tmp_path / "file").write_text("in the way")
        dataset.cache_dir = str(tmp_path / "file" / "cache")
    elif problem == "full":
        monkeypatch.setattr(os, "posix_fallocate", no_room)
    else:
        monkeypatch.setattr(os, "rename", no_room)
    examples = decode(files, dataset)
    assert examples.images[:, 0, 0, 0].tolist() == [10, 30]
    assert sum("no image cache" in note for note in examples.notes) == 1
    assert not list(tmp_path.glob("cache/images/*"))


def test_cache_folder_holds_only_finished_files(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    files, dataset = make([encoded(gray(1))])

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decode_module, "decode_image", interrupted)
        decode(files, dataset)
    assert list(Path(dataset.cache_dir).glob("images/*")) == []
    decode(files, dataset)
    assert len(list(Path(dataset.cache_dir).glob("images/*"))) == 1


def test_default_cache_folder_follows_xdg(make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    decode(*make([encoded(gray(1))], cache_dir=""))
    assert len(list((tmp_path / "xdg" / "covidjax" / "images").iterdir())) == 1


def test_a_file_that_changes_while_it_is_read_is_an_error(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    files, dataset = make([encoded(gray(1))])
    monkeypatch.setattr(decode_module, "_digest_files", lambda _: ({}, ["0" * 64]))
    with pytest.raises(UserError, match="changed while it was being read"):
        decode(files, dataset)
    assert list(Path(dataset.cache_dir).glob("images/*")) == []


def test_progress_is_one_line_without_a_terminal(make: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    files, dataset = make([encoded(gray(1))] * 40)
    decode(files, dataset)
    assert capsys.readouterr().err.startswith("train: decoded 40 images in ")
    decode(files, dataset)
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert "40 images from the cache" in streams.err


def test_progress_is_a_bar_on_a_terminal(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    decode(*make([encoded(gray(1))] * 40))
    assert "\rtrain: decoding [" in terminal.getvalue()
    assert "reading [" not in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1
