"""One image file to pixels: every mode and format, orientation, crops, and the reasons of what cannot be decoded."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from covidjax.data import picture
from covidjax.data.picture import CROPS, BadImageError, ImageSpec, decode_image
from tests.data.images import encoded, gray, noise


def bomb() -> bytes:
    content = bytearray(encoded(gray(0)))
    content[16:24] = struct.pack(">II", 10_000, 10_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def palette(transparency: int | None = None) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image) if transparency is None else encoded(image, transparency=transparency)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encoded(gray(100)), (100, 100, 100), id="gray png"),
        pytest.param(encoded(gray(100), "jpg"), (100, 100, 100), id="gray jpeg"),
        pytest.param(encoded(gray(100), "bmp"), (100, 100, 100), id="gray bmp"),
        pytest.param(encoded(gray(100), "tiff"), (100, 100, 100), id="gray tiff"),
        pytest.param(encoded(Image.new("RGB", (8, 8), (10, 200, 30)), "tiff"), (10, 200, 30), id="rgb tiff"),
        pytest.param(encoded(Image.new("RGB", (8, 8), (10, 200, 30))), (10, 200, 30), id="rgb png"),
        pytest.param(encoded(Image.new("RGB", (8, 8), (10, 200, 30)), "bmp"), (10, 200, 30), id="rgb bmp"),
        pytest.param(encoded(Image.new("LA", (8, 8), (200, 128))), (100, 100, 100), id="gray and alpha"),
        pytest.param(encoded(Image.new("RGBA", (8, 8), (255, 100, 0, 51))), (51, 20, 0), id="rgba over black"),
        pytest.param(encoded(Image.new("RGBA", (8, 8), (10, 200, 30, 255))), (10, 200, 30), id="opaque rgba"),
        pytest.param(encoded(gray(100), transparency=100), (0, 0, 0), id="gray with a transparent value"),
        pytest.param(palette(), (10, 200, 30), id="palette"),
        pytest.param(palette(transparency=1), (0, 0, 0), id="palette with transparency"),
        pytest.param(encoded(Image.new("1", (8, 8), 1)), (255, 255, 255), id="1 bit png"),
        pytest.param(encoded(Image.new("1", (8, 8), 1), "bmp"), (255, 255, 255), id="1 bit bmp"),
        pytest.param(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 155)), "jpg"), (100, 100, 100), id="cmyk jpeg"),
        pytest.param(encoded(Image.new("I;16", (8, 8), 25700)), (100, 100, 100), id="16 bit"),
        pytest.param(encoded(Image.new("I;16", (8, 8), 65535)), (255, 255, 255), id="16 bit white"),
        pytest.param(encoded(Image.new("I;16", (8, 8), 4095)), (16, 16, 16), id="12 bit in 16 bit"),
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


def test_a_32_bit_mode_is_scaled_like_16_bit_and_clipped() -> None:
    for value, expected in ((25700, 100), (-5, 0), (10**6, 255)):
        assert np.asarray(picture._to_mode(Image.new("I", (2, 2), value), "L")).tolist() == [[expected] * 2] * 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_orientation_is_applied(suffix: str) -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: right becomes bottom
    pixels = decode_image(encoded(Image.fromarray(upright), suffix, exif=exif.tobytes()), ImageSpec(16, 1, "center"))[
        ..., 0
    ]
    assert pixels[-1].min() > 250
    assert pixels[0].max() < 5


def test_crops_keep_what_they_promise() -> None:
    wide = np.full((20, 40), 50, np.uint8)
    wide[:, 10:30] = 200  # the centre square
    content = encoded(Image.fromarray(wide))
    assert np.all(decode_image(content, ImageSpec(20, 1, "center")) == 200)
    padded = decode_image(content, ImageSpec(20, 1, "pad"))[..., 0]
    assert np.all(padded[:5] == 0)
    assert np.all(padded[15:] == 0)
    assert padded[5:15, 0].tolist() == [50] * 10
    assert padded[5:15, 10].tolist() == [200] * 10
    squashed = decode_image(content, ImageSpec(20, 1, "squash"))[..., 0]
    assert np.all(squashed[:, 0] == 50)
    assert np.all(squashed[:, 10] == 200)
    assert np.all(squashed[:, -1] == 50)


@pytest.mark.parametrize("crop", CROPS)
def test_shrinking_is_antialiased(crop: str) -> None:
    checkerboard = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode_image(encoded(Image.fromarray(checkerboard)), ImageSpec(16, 1, crop))
    assert 120 <= pixels.min() <= pixels.max() <= 135


def test_extreme_shapes_decode() -> None:
    for crop in CROPS:
        assert decode_image(encoded(gray(9, (400, 1))), ImageSpec(8, 1, crop)).shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is text", "not a JPEG, PNG, BMP or TIFF"),
        (encoded(noise(), "gif"), "not a JPEG, PNG, BMP or TIFF"),
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
