"""What a mask means is told by the kind of its file, and not by what occurs in it."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidjax.data.formats.base import BadImageError
from covidjax.data.picture import CROPS, ImageSpec, decode_pair
from tests.data.images import decode_image, encoded, gray, noise
from tests.data.test_picture import of
from tests.data.written import png

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_masks_are_the_raw_samples_of_gray(bits: int) -> None:
    """Ids do not depend on which of them occur."""
    image, white = encoded(gray(7)), 2**bits - 1

    def ids(values: np.ndarray, num_classes: int) -> np.ndarray:
        return decode_pair(image, png(values[..., None], bits), "m", num_classes, ImageSpec(8, 1, "center"))[1]

    one = RANDOM.integers(0, 2, (8, 8))
    np.testing.assert_array_equal(ids(one, 2), one)
    np.testing.assert_array_equal(ids(white * one, 2), one)
    for value, expected in ((0, 0), (1, 1), (white, 1)):
        assert (ids(np.full((8, 8), value), 2) == expected).all()
    if bits > 1:
        three = RANDOM.integers(0, 3, (8, 8))
        np.testing.assert_array_equal(ids(three, 3), three)
        with pytest.raises(BadImageError, match=f"1 and {white} stand for the same class"):
            ids(np.where(one == 1, white, RANDOM.integers(0, 2, (8, 8))), 2)
        with pytest.raises(BadImageError, match=f"class ids {white} are out of range") as caught:
            ids(white * one, 3)
        assert "85" not in str(caught.value).replace(str(white), "")


def test_a_palette_of_a_mask_is_read_by_what_it_is() -> None:
    def ids(indices: np.ndarray, palette: list[int], num_classes: int = 2) -> np.ndarray:
        content = png(indices[..., None], 8, 3, palette=bytes(palette))
        return decode_pair(encoded(gray(7)), content, "m", num_classes, ImageSpec(8, 1, "center"))[1]

    one = RANDOM.integers(0, 2, (8, 8))
    black, white, red = [0, 0, 0], [255, 255, 255], [200, 0, 0]
    np.testing.assert_array_equal(ids(one, black + white), one)
    np.testing.assert_array_equal(ids(one, white + black), 1 - one)
    np.testing.assert_array_equal(ids(one, white + black + red, 3), one)
    np.testing.assert_array_equal(ids(one, white + black + red), one)  # whether or not red occurs
    ramp = [value for value in range(256) for _ in range(3)]
    np.testing.assert_array_equal(ids(255 * one, ramp), one)
    with pytest.raises(BadImageError, match="from white to black"):
        ids(255 * one, ramp[::-1])


def half(low: int, high: int, dtype: Any = np.uint8) -> np.ndarray:
    """Eight by eight: `low` above, `high` below."""
    return np.repeat(np.array([low] * 4 + [high] * 4, dtype)[:, None], 8, axis=1)


def palette(ids: np.ndarray, *colors: int) -> bytes:
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(colors)
    return encoded(image)


def decoded(mask: bytes, num_classes: int = 2, image: bytes | None = None) -> np.ndarray:
    """The mask of a pair, [8, 8]."""
    content, spec = encoded(gray(7)) if image is None else image, ImageSpec(8, 1, "center")
    return decode_pair(content, mask, "m.png", num_classes, spec)[1]


@pytest.mark.parametrize(
    "mask",
    [
        *[of(half(0, 255), suffix) for suffix in ("png", "bmp", "tiff")],
        *[encoded(Image.fromarray(half(0, 255)).convert(mode)) for mode in ("1", "RGB", "RGBA")],
        pytest.param(of(half(0, 1)), id="0 and 1"),
        pytest.param(of(half(0, 255), "tiff", compression="tiff_lzw"), id="compressed tiff"),
        pytest.param(of(half(0, 255, np.uint16)), id="16 bit"),
        pytest.param(palette(half(0, 1), 0, 0, 0, 200, 30, 30), id="palette of ids"),
        pytest.param(palette(half(1, 0), 255, 255, 255, 0, 0, 0), id="palette of black and white, white first"),
    ],
)
def test_two_classes_are_0_and_1_or_0_and_255(mask: bytes) -> None:
    np.testing.assert_array_equal(decoded(mask), half(0, 1))


def test_empty_and_full_masks_are_allowed_and_class_ids_stay() -> None:
    assert not decoded(of(half(0, 0))).any()
    for value in (1, 255):
        assert (decoded(of(half(value, value))) == 1).all()
    np.testing.assert_array_equal(decoded(of(half(2, 1)), num_classes=3), half(2, 1))
    np.testing.assert_array_equal(decoded(palette(half(0, 2), 9, 0, 0, 0, 9, 0, 0, 0, 9), num_classes=3), half(0, 2))


@pytest.mark.parametrize(
    ("mask", "num_classes", "reason"),
    [
        (of(half(0, 2)), 2, "class ids 2 are out of range (allowed: 0 to 1, or 0 and 255)"),
        (of(half(0, 255)), 3, "class ids 255 are out of range (allowed: 0 to 2)"),
        (of(half(0, 254)), 2, "class ids 254 are out of range"),
        (of(half(0, -1, np.int32), "tiff"), 2, "class ids -1 are out of range"),
        (of(np.arange(64, dtype=np.uint8).reshape(8, 8)), 2, "64 values look like lossy JPEG"),
        (of(half(0, 255), "jpg"), 2, "lossy JPEG"),
        (of(half(0, 255), "tiff", compression="jpeg"), 2, "lossy JPEG"),
        (encoded(Image.fromarray(half(0, 1)).convert("F"), "tiff"), 2, "floating-point values"),
        (encoded(Image.new("RGB", (8, 8), (0, 1, 0))), 2, "colours"),
        (encoded(Image.new("LA", (8, 8), (1, 100))), 2, "transparent"),
        (of(half(0, 1)[:7]), 2, "8 x 7 pixels, but the image has 8 x 8"),
        (b"", 2, "the file is empty"),
        (b"text", 2, "not a JPEG, PNG, BMP, TIFF or DICOM image"),
    ],
)
def test_a_wrong_mask_has_a_reason(mask: bytes, num_classes: int, reason: str) -> None:
    with pytest.raises(BadImageError) as caught:
        decoded(mask, num_classes)
    assert str(caught.value).startswith("its mask m.png: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_that_once_was_jpeg_is_refused_and_image_and_mask_are_blamed_together() -> None:
    disc = np.hypot(*np.ogrid[-32:32, -32:32]) < 20
    once = Image.open(io.BytesIO(of(disc.astype(np.uint8) * 255, "jpg", quality=90)))
    with pytest.raises(BadImageError, match="look like lossy JPEG or a smooth resize"):
        decoded(encoded(once), image=encoded(noise()))
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
    image, mask, _ = decode_pair(content, of(disc), "", 2, spec)
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
