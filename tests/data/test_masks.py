"""Masks beside their images: values, geometry, faults, the cache."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from covidjax.data import decode as decode_module
from covidjax.data.decode import decode
from covidjax.data.listing import ImageFiles, Row
from covidjax.data.picture import CROPS, BadImageError, ImageSpec, decode_image, decode_pair
from covidjax.errors import UserError
from tests.data.images import dataset_config, encoded, gray, noise

SIZE = (8, 8)


def half(low: int, high: int, dtype: Any = np.uint8) -> np.ndarray:
    """Eight by eight: `low` above, `high` below."""
    return np.repeat(np.array([low] * 4 + [high] * 4, dtype)[:, None], 8, axis=1)


def of(values: np.ndarray, suffix: str = "png", **options: object) -> bytes:
    return encoded(Image.fromarray(values), suffix, **options)


def in_mode(mode: str, *arguments: Any) -> bytes:
    return encoded(Image.fromarray(half(0, 1)).convert(mode, *arguments))


def palette(ids: np.ndarray, *colors: int) -> bytes:
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(colors)
    return encoded(image)


def decoded(mask: bytes, num_classes: int = 2, image: bytes | None = None, size: int = 8) -> np.ndarray:
    """The mask of a pair, [size, size]."""
    content, spec = encoded(gray(7)) if image is None else image, ImageSpec(size, 1, "center")
    return decode_pair(content, mask, "m.png", num_classes, spec)[size * size :].reshape(size, size)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(of(half(0, 255)), id="0 and 255"),
        pytest.param(of(half(0, 1)), id="0 and 1"),
        pytest.param(of(half(0, 255), "bmp"), id="bmp"),
        pytest.param(of(half(0, 255), "tiff"), id="tiff"),
        pytest.param(of(half(0, 255), "tiff", compression="tiff_lzw"), id="compressed tiff"),
        pytest.param(encoded(Image.fromarray(half(0, 255)).convert("1")), id="1 bit"),
        pytest.param(of(half(0, 255, np.uint16)), id="16 bit"),
        pytest.param(encoded(Image.fromarray(half(0, 255)).convert("RGB")), id="equal channels"),
        pytest.param(encoded(Image.fromarray(half(0, 255)).convert("RGBA")), id="opaque"),
        pytest.param(palette(half(0, 1), 0, 0, 0, 200, 30, 30), id="palette of ids"),
        pytest.param(palette(half(1, 0), 255, 255, 255, 0, 0, 0), id="palette of black and white, white first"),
    ],
)
def test_two_classes_are_0_and_1_or_0_and_255(mask: bytes) -> None:
    np.testing.assert_array_equal(decoded(mask), half(0, 1))


@pytest.mark.parametrize("value", [1, 255])
def test_empty_and_full_masks_are_allowed(value: int) -> None:
    assert not decoded(of(half(0, 0))).any()
    assert (decoded(of(half(value, value))) == 1).all()


def test_class_ids_stay() -> None:
    np.testing.assert_array_equal(decoded(of(half(2, 1)), num_classes=3), half(2, 1))
    np.testing.assert_array_equal(decoded(palette(half(0, 2), 9, 0, 0, 0, 9, 0, 0, 0, 9), num_classes=3), half(0, 2))


@pytest.mark.parametrize(
    ("mask", "num_classes", "reason"),
    [
        (of(half(0, 2)), 2, "class ids 2 are out of range (allowed: 0 to 1, or 0 and 255)"),
        (of(half(0, 255)), 3, "class ids 255 are out of range (allowed: 0 to 2)"),
        (of(half(0, 254)), 2, "class ids 254 are out of range"),
        (encoded(Image.fromarray(half(0, -1, np.int32)), "tiff"), 2, "class ids -1 are out of range"),
        (of(np.arange(64, dtype=np.uint8).reshape(8, 8)), 2, "64 values look like lossy JPEG"),
        (of(half(0, 255), "jpg"), 2, "lossy JPEG"),
        (of(half(0, 255), "tiff", compression="jpeg"), 2, "lossy JPEG"),
        (encoded(Image.fromarray(half(0, 1)).convert("F"), "tiff"), 2, "floating-point values"),
        (encoded(Image.new("RGB", SIZE, (0, 1, 0))), 2, "colours"),
        (encoded(Image.new("LA", SIZE, (1, 100))), 2, "transparent"),
        (of(half(0, 1)[:7]), 2, "8 x 7 pixels, but the image has 8 x 8"),
        (b"", 2, "the file is empty"),
        (b"text", 2, "not a JPEG, PNG, BMP or TIFF image"),
    ],
)
def test_a_wrong_mask_has_a_reason(mask: bytes, num_classes: int, reason: str) -> None:
    with pytest.raises(BadImageError) as caught:
        decoded(mask, num_classes)
    assert str(caught.value).startswith("its mask m.png: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_that_once_was_jpeg_is_refused() -> None:
    disc = np.hypot(*np.ogrid[-32:32, -32:32]) < 20
    once = Image.open(io.BytesIO(of(disc.astype(np.uint8) * 255, "jpg", quality=90)))
    with pytest.raises(BadImageError, match="look like lossy JPEG or a smooth resize"):
        decoded(encoded(once), image=encoded(noise()))


def test_image_and_mask_are_blamed_together() -> None:
    with pytest.raises(BadImageError, match=r"the file is empty; its mask m\.png: class ids 9"):
        decoded(of(half(0, 9)), image=b"")


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (33, 57)])
@pytest.mark.parametrize("channels", [1, 3])
def test_mask_lies_on_its_image(crop: str, shape: tuple[int, int], channels: int) -> None:
    """An image that shows its own mask still does, but for the pixels that the border crosses."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    disc = (np.hypot(rows - shape[0] * 0.4, columns - shape[1] * 0.6) < 9).astype(np.uint8)
    content = of(disc * 255)
    spec = ImageSpec(48, channels, crop)
    both = decode_pair(content, of(disc), "", 2, spec)
    image, mask = both[: -48 * 48].reshape(48, 48, channels), both[-48 * 48 :].reshape(48, 48)
    np.testing.assert_array_equal(image, decode_image(content, spec))
    assert set(np.unique(mask)) == {0, 1}
    clear = (image[..., 0] < 5) | (image[..., 0] > 250)
    assert clear.mean() > 0.6
    np.testing.assert_array_equal(mask[clear], image[..., 0][clear] > 127)
    assert 0.9 < mask.sum() / (image[..., 0] / 255).sum() < 1.1


def test_orientation_is_that_of_each_file() -> None:
    """A photograph that is stored lying down fits a mask that was drawn upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = np.zeros((8, 12), np.uint8)
    upright = np.rot90(lying, -1)
    assert decoded(of(upright), image=of(lying, exif=exif.tobytes())).shape == (8, 8)
    with pytest.raises(BadImageError, match="12 x 8 pixels, but the image has 8 x 12"):
        decoded(of(lying), image=of(lying, exif=exif.tobytes()))


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    """Five pairs of noise, the masks with two classes and their names in capitals."""
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    names, masks = (tuple(f"{folder}/{index}.png" for index in range(5)) for folder in ("images", "masks"))
    for name, mask in zip(names, masks, strict=True):
        (tmp_path / "root" / name).write_bytes(of(generator.integers(0, 256, (8, 8), np.uint8)))
        (tmp_path / "root" / mask).write_bytes(of(generator.integers(0, 2, (8, 8), np.uint8)))
    rows = tuple(Row(name, "train", mask=mask) for name, mask in zip(names, masks, strict=True))
    return ImageFiles(tmp_path / "root", rows, ("a", "b"), False, split="train")


def config(tmp_path: Path, **changes: Any) -> ConfigDict:
    return dataset_config(tmp_path / "root", **changes)


def raw(files: ImageFiles, index: int) -> tuple[np.ndarray, np.ndarray]:
    row = files.rows[index]
    return np.asarray(Image.open(files.root / row.name)), np.asarray(Image.open(files.root / (row.mask or "")))


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_stay_together_and_a_second_start_decodes_nothing(
    files: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    first = decode(files, config(tmp_path, channels=channels))
    monkeypatch.setattr(decode_module, "decode_pair", None)
    second = decode(files, config(tmp_path, channels=channels))
    for examples in (first, second):
        assert examples.masks is not None
        assert (examples.images.shape, examples.masks.shape) == ((5, 8, 8, channels), (5, 8, 8))
        assert examples.images.dtype == examples.masks.dtype == np.uint8
        assert isinstance(examples.images, np.memmap)
        assert isinstance(examples.masks, np.memmap)
        for index in range(5):
            image, mask = raw(files, index)
            np.testing.assert_array_equal(examples.images[index], np.repeat(image[..., None], channels, -1))
            np.testing.assert_array_equal(examples.masks[index], mask)
    assert first.fingerprint == second.fingerprint


def test_a_changed_mask_or_class_is_noticed(files: ImageFiles, tmp_path: Path) -> None:
    before = decode(files, config(tmp_path))
    renamed = dataclasses.replace(files, classes=("a", "c"))
    (files.root / "masks/2.png").write_bytes(of(half(0, 1)))
    after = decode(files, config(tmp_path))
    assert after.masks is not None
    np.testing.assert_array_equal(after.masks[2], half(0, 1))
    assert len({before.fingerprint, after.fingerprint, decode(renamed, config(tmp_path)).fingerprint}) == 3


def test_all_faults_are_in_one_message_and_skip_bad_drops_the_pairs(files: ImageFiles, tmp_path: Path) -> None:
    (files.root / "masks/0.png").write_bytes(of(half(0, 7)))
    (files.root / "masks/1.png").unlink()
    (files.root / "images/3.png").write_bytes(b"text")
    faulty = dataclasses.replace(files.rows[4], mask="", fault="it has no mask masks/4.png")
    files = dataclasses.replace(files, rows=(*files.rows[:4], faulty))
    with pytest.raises(UserError) as caught:
        decode(files, config(tmp_path))
    message = str(caught.value)
    assert "4 of 5 train files are bad" in message
    assert "\n" not in message
    for part in (
        "0.png (its mask masks/0.png: class ids 7",
        "1.png (its mask masks/1.png: No such file",
        "3.png (not a JPEG",
        "4.png (it has no mask masks/4.png)",
    ):
        assert part in message
    for _ in range(2):
        examples = decode(files, config(tmp_path, skip_bad=True))
        assert examples.names == ("images/2.png",)
        assert examples.masks is not None
        np.testing.assert_array_equal(examples.images[0, ..., 0], raw(files, 2)[0])
        np.testing.assert_array_equal(examples.masks[0], raw(files, 2)[1])
        assert sum("4 bad files were dropped" in note for note in examples.notes) == 1
