"""Files of a split to arrays: order, bad files, the cache and the fingerprint."""

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
from PIL import Image

from covidjax.data import decode as decode_module
from covidjax.data.decode import decode
from covidjax.data.listing import ImageFiles, Row
from covidjax.data.picture import ImageSpec, decode_image
from covidjax.errors import UserError
from tests.data.images import dataset_config, encoded, gray, noise

FIRST_TEN = ", ".join(f"a/{index:03}.png" for index in range(10))
FLAT = f"train: {{}} images come out in one level of brightness: {FIRST_TEN} and 40 more"


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
def pairs(tmp_path: Path) -> ImageFiles:
    """Five pairs of noise, the masks with two classes."""
    generator, rows = np.random.default_rng(0), []
    for folder in ("images", "masks"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    for index in range(5):
        rows.append(Row(f"images/{index}.png", "train", masks=(f"masks/{index}.png",)))
        for folder, levels in (("images", 256), ("masks", 2)):
            pixels = generator.integers(0, levels, (8, 8), np.uint8)
            (tmp_path / "root" / folder / f"{index}.png").write_bytes(encoded(Image.fromarray(pixels)))
    return ImageFiles(tmp_path / "root", tuple(rows), ("a", "b"), False, split="train")


@pytest.fixture
def decoded_count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of decode_image."""
    calls: list[int] = []

    def counting(content: bytes, spec: ImageSpec) -> tuple[np.ndarray, tuple[str, ...]]:
        calls.append(1)
        return decode_image(content, spec)

    monkeypatch.setattr(decode_module, "decode_image", counting)
    return calls


def raw(files: ImageFiles, index: int) -> tuple[np.ndarray, np.ndarray]:
    row = files.rows[index]
    assert row.masks
    return np.asarray(Image.open(files.root / row.name)), np.asarray(Image.open(files.root / row.masks[0]))


def cached(dataset: ConfigDict) -> list[Path]:
    return list(Path(dataset.cache_dir).glob("images/*"))


def test_images_stay_in_the_order_of_their_names_and_a_second_start_decodes_nothing(
    make: Callable, decoded_count: list[int]
) -> None:
    files, dataset = make([encoded(gray(value)) for value in range(50)])
    first, second = decode(files, dataset), decode(files, dataset)
    assert len(decoded_count) == 50
    for examples in (first, second):
        assert examples.images[:, 0, 0, 0].tolist() == list(range(50))
        assert examples.labels.tolist() == [0, 1] * 25
        assert (examples.images.dtype, examples.labels.dtype) == (np.uint8, np.int32)
        assert isinstance(examples.images, np.memmap)
        assert not examples.images.flags.writeable
        assert (examples.names, examples.patients, examples.patients_known) == (files.names, files.names, False)
        assert (examples.split, examples.classes, examples.notes) == ("train", ("x", "y"), ("a note", FLAT.format(50)))
    assert first.fingerprint == second.fingerprint


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
    reasons = {0: "the file is empty", 2: "not a JPEG", 3: "No such file", 4: "truncated or damaged JPEG"}
    for index, reason in reasons.items():
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
        assert len(examples.notes) == 3
        assert "one level of brightness" in examples.notes[1]
        assert all(name in examples.notes[2] for name in (files.names[0], files.names[2]))
        assert len(decoded_count) == 5, f"start {start}"
    with pytest.raises(UserError, match="no good file"):
        decode(*make([b"", b"text"], skip_bad=True))


@pytest.mark.parametrize("change", ["pixel", "image_size", "channels", "crop", "enhancement", "window", "name"])
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
        dataset[change] = {"image_size": 4, "channels": 3, "crop": "pad", "enhancement": "clahe", "window": "0:255"}[
            change
        ]
    after = decode(files, dataset)
    assert len(decoded_count) == 4
    assert after.fingerprint != before.fingerprint
    assert after.images.shape[1:] == (dataset.image_size, dataset.image_size, dataset.channels)
    assert after.images[1, 0, 0, 0] == (77 if change == "pixel" else 2)


def test_fingerprint_follows_labels_and_patients_and_is_what_it_was(make: Callable) -> None:
    """Pinned: run.json of earlier runs holds it, and a run goes on only where it is the same."""
    files, dataset = make([encoded(gray(value), "bmp") for value in (1, 2)])
    swapped = dataclasses.replace(files, rows=tuple(dataclasses.replace(row, label="y") for row in files.rows))
    patients = tuple(dataclasses.replace(row, patient="p") for row in files.rows)
    known = dataclasses.replace(files, rows=patients, patients_known=True)
    found = [decode(variant, dataset).fingerprint for variant in (files, swapped, known)]
    assert len(set(found)) == 3
    assert found[0] == "d934a932cb5eea8930d7d82a31addb1d9e9a545068fe708dc92b22550b51da20"


def test_a_damaged_cache_is_rebuilt_and_said(
    make: Callable, decoded_count: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """What else is damage: `test_store.py`."""
    files, dataset = make([encoded(gray(value)) for value in (1, 2)])
    decode(files, dataset)
    (folder,) = cached(dataset)
    (folder / "notes.json").write_text('{"a/000.png": "so it says"}')
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
    else:
        monkeypatch.setattr(os, {"full": "posix_fallocate", "full at the end": "rename"}[problem], no_room)
    examples = decode(files, dataset)
    assert examples.images[:, 0, 0, 0].tolist() == [10, 30]
    assert sum("no image cache" in note for note in examples.notes) == 1
    assert not cached(dataset)


def test_cache_folder_holds_only_what_is_whole(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    files, dataset = make([encoded(gray(1))])

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decode_module, "decode_image", interrupted)
        decode(files, dataset)
    assert not cached(dataset)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="changed while it was being read"):
        patch.setattr(decode_module, "_digest_files", lambda _: ({files.names[0]: "0" * 64}, {}))
        decode(files, dataset)
    assert not cached(dataset)
    decode(files, dataset)
    assert len(cached(dataset)) == 1


def test_default_cache_folder_follows_xdg(make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    decode(*make([encoded(gray(1))], cache_dir=""))
    assert len(list((tmp_path / "xdg" / "covidjax" / "images").iterdir())) == 1


def test_progress_is_one_line_without_a_terminal_and_a_bar_on_one(
    make: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, dataset = make([encoded(gray(1))] * 40)
    decode(files, dataset)
    assert capsys.readouterr().err.startswith("train: decoded 40 images in ")
    decode(files, dataset)
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert "40 images from the cache" in streams.err
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    decode(*make([encoded(gray(2))] * 40))
    assert "\rtrain: decoding [" in terminal.getvalue()
    assert "reading [" not in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_stay_together_and_a_second_start_decodes_nothing(
    pairs: ImageFiles, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    first = decode(pairs, dataset_config(pairs.root, channels=channels))
    monkeypatch.setattr(decode_module, "decode_pair", None)
    second = decode(pairs, dataset_config(pairs.root, channels=channels))
    for examples in (first, second):
        assert isinstance(examples.images, np.memmap)
        assert isinstance(examples.masks, np.memmap)
        assert (examples.images.shape, examples.masks.shape) == ((5, 8, 8, channels), (5, 8, 8))
        assert examples.images.dtype == examples.masks.dtype == np.uint8
        for index in range(5):
            image, mask = raw(pairs, index)
            np.testing.assert_array_equal(examples.images[index], np.repeat(image[..., None], channels, -1))
            np.testing.assert_array_equal(examples.masks[index], mask)
    assert first.fingerprint == second.fingerprint


def test_a_changed_mask_or_class_is_noticed(pairs: ImageFiles) -> None:
    dataset = dataset_config(pairs.root)
    before = decode(pairs, dataset)
    renamed = dataclasses.replace(pairs, classes=("a", "c"))
    (pairs.root / "masks/2.png").write_bytes(encoded(gray(1)))
    after = decode(pairs, dataset)
    assert after.masks is not None and after.masks[2].all()
    assert len({before.fingerprint, after.fingerprint, decode(renamed, dataset).fingerprint}) == 3


def test_all_faults_of_pairs_are_in_one_message_and_skip_bad_drops_them(pairs: ImageFiles) -> None:
    (pairs.root / "masks/0.png").write_bytes(encoded(gray(7)))
    (pairs.root / "masks/1.png").unlink()
    (pairs.root / "images/3.png").write_bytes(b"text")
    faulty = dataclasses.replace(pairs.rows[4], masks=(), fault="it has no mask masks/4.png")
    files = dataclasses.replace(pairs, rows=(*pairs.rows[:4], faulty))
    with pytest.raises(UserError) as caught:
        decode(files, dataset_config(files.root))
    assert "\n" not in str(caught.value)
    for part in (
        "4 of 5 train files are bad",
        "0.png (its mask masks/0.png: class ids 7",
        "1.png (its mask masks/1.png: No such file",
        "3.png (not a JPEG",
        "4.png (it has no mask masks/4.png)",
    ):
        assert part in str(caught.value)
    for _ in range(2):
        examples = decode(files, dataset_config(files.root, skip_bad=True))
        assert examples.names == ("images/2.png",)
        assert examples.masks is not None
        np.testing.assert_array_equal(examples.images[0, ..., 0], raw(files, 2)[0])
        np.testing.assert_array_equal(examples.masks[0], raw(files, 2)[1])
        assert sum("4 bad files were dropped" in note for note in examples.notes) == 1
