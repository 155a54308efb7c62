"""One image file, or an image and its mask, to pixels: modes, orientation, crops, contrast, and what is bad."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.exposure import equalize_adapthist

from covidjax.data import phantom
from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.read import open_picture
from covidjax.data.picture import CROPS, ImageSpec, decode_pair, equalised, own_pixels
from tests.data.images import decode_image, encoded, gray, noise
from tests.support import small_config

SIZE = 64
COLOUR = (10, 200, 30)


def of(values: np.ndarray, suffix: str = "png", **options: object) -> bytes:
    return encoded(Image.fromarray(values), suffix, **options)


def bomb() -> bytes:
    content = bytearray(encoded(gray(0)))
    content[16:24] = struct.pack(">II", 10_000, 10_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def two_colours(transparency: int | None = None) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image) if transparency is None else encoded(image, transparency=transparency)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *[(encoded(gray(100), suffix), (100, 100, 100)) for suffix in ("png", "jpg", "bmp", "tiff")],
        *[(encoded(Image.new("RGB", (8, 8), COLOUR), suffix), COLOUR) for suffix in ("png", "bmp", "tiff")],
        *[(encoded(Image.new("1", (8, 8), 1), suffix), (255, 255, 255)) for suffix in ("png", "bmp")],
        *[
            (encoded(Image.new("I;16", (8, 8), level)), (grey,) * 3)
            for level, grey in ((25700, 100), (65535, 255), (4095, 16))
        ],
        pytest.param(encoded(Image.new("LA", (8, 8), (200, 128))), (100, 100, 100), id="gray and alpha"),
        pytest.param(encoded(Image.new("RGBA", (8, 8), (255, 100, 0, 51))), (51, 20, 0), id="rgba over black"),
        pytest.param(encoded(Image.new("RGBA", (8, 8), (10, 200, 30, 255))), (10, 200, 30), id="opaque rgba"),
        pytest.param(encoded(gray(100), transparency=100), (0, 0, 0), id="gray with a transparent value"),
        pytest.param(two_colours(), (10, 200, 30), id="palette"),
        pytest.param(two_colours(transparency=1), (0, 0, 0), id="palette with transparency"),
        pytest.param(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 155)), "jpg"), (100, 100, 100), id="cmyk jpeg"),
    ],
)
def test_every_mode_and_format_keeps_its_values(content: bytes, expected: tuple[int, int, int]) -> None:
    color = decode_image(content, ImageSpec(8, 3, "center"))
    assert color.dtype == np.uint8
    assert color.shape == (8, 8, 3)
    assert np.abs(color.astype(int) - np.array(expected)).max() <= 1
    luminance = decode_image(content, ImageSpec(8, 1, "center"))
    assert luminance.shape == (8, 8, 1)
    assert np.abs(luminance.astype(int) - np.dot(expected, (0.299, 0.587, 0.114))).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_orientation_is_applied(suffix: str) -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: right becomes bottom
    pixels = decode_image(of(upright, suffix, exif=exif.tobytes()), ImageSpec(16, 1, "center"))[..., 0]
    assert pixels[-1].min() > 250 and pixels[0].max() < 5


def test_crops_keep_what_they_promise() -> None:
    wide = np.full((20, 40), 50, np.uint8)
    wide[:, 10:30] = 200  # the centre square
    content = of(wide)
    assert np.all(decode_image(content, ImageSpec(20, 1, "center")) == 200)
    padded = decode_image(content, ImageSpec(20, 1, "pad"))[..., 0]
    assert not padded[:5].any() and not padded[15:].any()
    assert (padded[5:15, [0, 10]] == [50, 200]).all()
    squashed = decode_image(content, ImageSpec(20, 1, "squash"))[..., 0]
    assert (squashed[:, [0, 10, -1]] == [50, 200, 50]).all()


@pytest.mark.parametrize("crop", CROPS)
def test_shrinking_is_antialiased(crop: str) -> None:
    checkerboard = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode_image(of(checkerboard), ImageSpec(16, 1, crop))
    assert 120 <= pixels.min() <= pixels.max() <= 135


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is text", "not a JPEG, PNG, BMP, TIFF or DICOM"),
        (encoded(noise(), "gif"), "not a JPEG, PNG, BMP, TIFF or DICOM"),
        (encoded(noise(), "jpg")[:-400], "truncated"),
        (encoded(noise())[:-400], "truncated"),
        (encoded(noise(), "bmp")[:-400], "truncated"),
        (encoded(noise())[:20], ""),
        (encoded(noise(), "tiff")[:-400], ""),
        (encoded(Image.new("F", (8, 8), 0.5), "tiff"), "floating-point"),
        (encoded(gray(1), "tiff", save_all=True, append_images=[gray(2)]), "2 pages"),
        (bomb(), "10000 x 10000 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_undecodable_bytes_have_a_one_line_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadImageError) as caught:
        decode_image(content, ImageSpec(8, 1, "center"))
    assert reason in str(caught.value)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def textured(size: int = SIZE) -> np.ndarray:
    """A dim, a middle and a bright stripe [size, size], each with a texture of little contrast."""
    generator = np.random.default_rng(0)
    levels = np.repeat([40.0, 120.0, 220.0], [size // 3, size // 3, size - 2 * (size // 3)])
    return np.clip(levels[None] + 3 * generator.standard_normal((size, size)), 0, 255).astype(np.uint8)


def equal(pixels: np.ndarray, channels: int = 1, crop: str = "squash", size: int = SIZE) -> np.ndarray:
    return decode_image(of(pixels), ImageSpec(size, channels, crop, "clahe"))


def test_contrast_is_raised_in_every_part_and_no_further_than_the_limit() -> None:
    image = textured(128)
    found, unlimited = equalised(image), 255 * equalize_adapthist(image, kernel_size=16, clip_limit=1.0)
    assert (found.dtype, found.shape, found.min(), found.max()) == (np.uint8, image.shape, 0, 255)
    for part in (np.s_[:, 10:30], np.s_[:, 55:75], np.s_[:, 95:118]):
        assert 1.5 * image[part].std() < found[part].std() < 0.5 * unlimited[part].std()


def test_within_one_tile_the_order_of_grey_levels_is_kept_and_one_level_stays() -> None:
    image = np.random.default_rng(1).integers(20, 200, (16, 16)).astype(np.uint8)
    order = np.argsort(image, axis=None, kind="stable")
    assert np.all(np.diff(equalised(image).reshape(-1)[order].astype(int)) >= 0)
    assert len(np.unique(equalised(image))) > 50
    for dtype, factor in ((np.uint8, 1), (np.uint16, 257)):
        assert np.all(equalised(np.full((20, 30), 100 * factor, dtype)) == 100)


def test_dark_16_bit_image_keeps_levels_that_8_bits_would_lose() -> None:
    twelve_bits = np.random.default_rng(2).integers(0, 4096, (SIZE, SIZE)).astype(np.uint16)
    assert len(np.unique(decode_image(of(twelve_bits), ImageSpec(SIZE, 1, "squash")))) == 17
    found = equal(twelve_bits)
    assert len(np.unique(found)) > 200
    np.testing.assert_array_equal(found, equal(16 * twelve_bits))
    np.testing.assert_array_equal(found.repeat(3, axis=-1), equal(twelve_bits, channels=3))


def test_of_colours_the_luminance_alone_is_enhanced() -> None:
    gray = textured()
    np.testing.assert_array_equal(equal(gray).repeat(3, axis=-1), equal(gray, channels=3))
    luminance = (60 + gray // 3).astype(np.uint8)
    around = [np.full_like(gray, value) for value in (120, 136)]
    colours = np.asarray(Image.fromarray(np.stack([luminance, *around], axis=-1), "YCbCr").convert("RGB"))
    found = np.asarray(Image.fromarray(equal(colours, channels=3)).convert("YCbCr")).astype(int)
    inside = (found[..., 0] > 20) & (found[..., 0] < 235)  # near black and white no colour is left
    assert np.abs(found[..., 0] - equalised(luminance).astype(int))[inside].max() <= 2
    assert np.abs(found[..., 1:] - [120, 136])[inside].max() <= 2
    assert inside.mean() > 0.3


def test_image_is_enhanced_at_the_size_of_the_network_and_before_the_letterbox() -> None:
    wide = textured(2 * SIZE)[:SIZE]
    small = decode_image(of(wide), ImageSpec(SIZE, 1, "pad"))[..., 0]
    rows = np.flatnonzero(small.any(axis=1))
    assert 0 < len(rows) < SIZE
    found = equal(wide, crop="pad")[..., 0]
    np.testing.assert_array_equal(found[rows], equalised(small[rows]))
    assert not np.delete(found, rows, axis=0).any()


def test_image_at_its_own_size_is_enhanced_as_a_whole() -> None:
    picture = open_picture(of(textured(80)[:50]))
    np.testing.assert_array_equal(own_pixels(picture, 1, "clahe")[..., 0], equalised(textured(80)[:50]))


@pytest.mark.parametrize("shape", [(1, 400), (1, 1), (3, 5)])
@pytest.mark.parametrize("crop", CROPS)
def test_extreme_shapes_are_decoded_and_enhanced(shape: tuple[int, int], crop: str) -> None:
    pixels = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    assert equal(pixels, crop=crop, size=16).shape == (16, 16, 1)
    assert decode_image(of(pixels), ImageSpec(16, 1, crop)).shape == (16, 16, 1)


def test_phantoms_are_enhanced_too() -> None:
    settings: dict[str, Any] = {"dataset__image_size": 32, "dataset__num_images": 12}
    plain = phantom.load(small_config(**settings).dataset, "val")
    found = phantom.load(small_config(**settings, dataset__enhancement="clahe").dataset, "val")
    np.testing.assert_array_equal(found.images[..., 0], [equalised(image[..., 0]) for image in plain.images])
    assert found.fingerprint != plain.fingerprint


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
