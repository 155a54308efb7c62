"""One image file, or an image and its mask, to pixels: modes, orientation, crops, contrast, and what is bad."""

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
from covidjax.data.picture import CROPS, ImageSpec, equalised, own_pixels
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
