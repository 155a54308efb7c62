"""Files written by hand from the specifications come out as these say, or are refused in one line."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.read import open_picture
from covidjax.data.levels import CLEAR, DARK, FEW, ONE
from covidjax.data.picture import CROPS, ImageSpec, decode_image, own_pixels
from tests.data.images import encoded, gray, refused, said, scene
from tests.data.written import chunk, png, tiff

RANDOM = np.random.default_rng(0)
GRAY = (255 * scene(96)).astype(np.uint8)


def level(values: np.ndarray, bits: int) -> np.ndarray:
    """What gray of a depth is in 8 bits."""
    return np.floor(255 * values.astype(np.float64) / (2**bits - 1) + 0.5).astype(int)


def shown(content: bytes, channels: int = 1, window: str = "") -> np.ndarray:
    """[height, width] or [height, width, 3] as int."""
    pixels = own_pixels(open_picture(content), channels, window=window).astype(int)
    return pixels[..., 0] if channels == 1 else pixels


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"order": ">", "rows_per_strip": 3},
        {"tile": 16, "compression": 8},
        {"compression": 32773, "rows_per_strip": 4, "sample_format": None},
        {"fill_order": 2},
    ],
    ids=["plain", "big-endian strips", "deflated tiles", "packed strips", "low bits first"],
)
def test_gray_tiff_of_every_depth_has_its_full_range(bits: int, tags: dict[str, Any]) -> None:
    values = RANDOM.integers(0, 2**bits, (19, 21))
    np.testing.assert_array_equal(shown(tiff(values, bits, 1, **tags)), level(values, bits))
    np.testing.assert_array_equal(shown(tiff(values, bits, 0, **tags)), 255 - level(values, bits))


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_colours_of_tiff_in_one_plane_or_three(planar: int, bits: int) -> None:
    values = RANDOM.integers(0, 2**bits, (9, 11, 3))
    expected = values >> 8 if bits == 16 else level(values, bits)
    np.testing.assert_array_equal(shown(tiff(values, bits, 2, planar=planar), 3), expected)


def test_extra_samples_of_tiff_are_alpha_of_two_kinds_or_left_out_and_said() -> None:
    values = np.full((8, 8, 4), 100)
    values[..., 3] = 51
    assert shown(tiff(values, 8, 2, extras=[2]), 3)[0, 0].tolist() == [20, 20, 20]
    assert shown(tiff(values, 8, 2, extras=[1]), 3)[0, 0].tolist() == [100, 100, 100]
    assert not any("further samples" in one for one in said(tiff(values, 8, 2, extras=[1])))
    assert any("further samples" in one for one in said(tiff(values, 8, 2, extras=[0])))


def test_palette_of_tiff_has_16_bits() -> None:
    indices = RANDOM.integers(0, 16, (8, 8))
    colours = RANDOM.integers(0, 65536, (3, 16))
    content = tiff(indices, 4, 3, more=[(320, 3, colours.ravel().tolist())])
    np.testing.assert_array_equal(shown(content, 3), (colours >> 8).T[indices])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_tiff(orientation: int) -> None:
    values = RANDOM.integers(0, 256, (6, 9))
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: np.rot90(values, -1),
        7: values[::-1, ::-1].T,
        8: np.rot90(values),
    }[orientation]
    np.testing.assert_array_equal(shown(tiff(values, 8, more=[(274, 3, [orientation])])), turned)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(np.zeros((4, 4), np.int16), 16, sample_format=2), "signed values of 16 bits.*dataset.window"),
        (tiff(np.zeros((4, 4), np.int8), 8, sample_format=2), "signed values of 8 bits.*dataset.window"),
        (tiff(np.zeros((4, 4)), 32), "unsigned values of 32 bits.*dataset.window"),
        (tiff(np.zeros((4, 4), np.float32), 32, sample_format=3), "floating-point values of 32 bits.*dataset.window"),
    ],
)
def test_values_without_a_full_range_need_a_window(content: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode_image(content, ImageSpec(8, 1, "center"))


@pytest.mark.parametrize(
    ("values", "bits", "sample_format"),
    [
        (RANDOM.integers(-1200, 900, (16, 16)).astype(np.int16), 16, 2),
        (RANDOM.integers(-1200, 900, (16, 16)).astype(np.int32), 32, 2),
        (RANDOM.uniform(-1200, 900, (16, 16)).astype(np.float32), 32, 3),
    ],
)
def test_window_says_what_is_black_and_white(values: np.ndarray, bits: int, sample_format: int) -> None:
    content = tiff(values, bits, sample_format=sample_format)
    expected = np.floor(255 * np.clip((values.astype(float) + 1000) / 1400, 0, 1) + 0.5)
    np.testing.assert_array_equal(shown(content, window="-1000:400"), expected)
    low, high = np.percentile(values, (5, 90))
    expected = np.floor(255 * np.clip((values.astype(float) - low) / (high - low), 0, 1) + 0.5)
    np.testing.assert_array_equal(shown(content, window="percentiles:5:90"), expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(np.zeros((4, 4, 3)), 8, 6), "YCbCr"),
        (tiff(np.zeros((4, 4, 3)), 8, 8), "CIELab"),
        (tiff(np.zeros((4, 4, 3)), 8, 1), "3 samples a pixel, where 1 are meant"),
        (tiff(np.zeros((4, 4)), 8, more=[(259, 3, [34712])]), "compression 34712"),
        (tiff(np.zeros((4, 4)), 16, sample_format=6), "SampleFormat 6"),
        (tiff(np.zeros((40, 40)), 8)[:-1], "strip 1 of 1 is not whole"),
        (tiff(np.zeros((40, 40)), 8, tile=16)[:-1], "tile 9 of 9 is not whole"),
        (tiff(np.zeros((40, 40)), 8, more=[(279, 4, [1500])]), "strip 1 of 1 is not whole"),
        (tiff(np.zeros((40, 40)), 12, more=[(279, 4, [2300])]), "strip 1 of 1 is not whole"),
        (tiff(np.zeros((4, 4)), 8, more=[(257, 4, [30000]), (256, 4, [30000])]), "30000 x 30000 pixels"),
    ],
)
def test_tiff_that_cannot_be_read_right_is_refused(content: bytes, reason: str) -> None:
    refused(content, reason)


@pytest.mark.parametrize("kind", [0, 2, 3, 4, 6])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_of_every_type_and_depth(kind: int, bits: int) -> None:
    if (kind == 3 and bits == 16) or (kind not in (0, 3) and bits < 8):
        return
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    values = RANDOM.integers(0, 2**bits, (9, 13, channels))
    colours = RANDOM.integers(0, 256, (2**bits if kind == 3 else 1, 3), np.uint8)
    alpha, bytes_ = np.ones((9, 13, 1)), values >> 8 if bits == 16 else level(values, bits)
    if kind in (4, 6):
        alpha, bytes_ = bytes_[..., -1:] / 255, bytes_[..., :-1]
    elif kind == 0:
        bytes_ = level(values, bits)
    elif kind == 3:
        bytes_ = colours[values[..., 0]].astype(int)
    found = shown(png(values, bits, kind, palette=colours.tobytes() if kind == 3 else b""), 3)
    assert np.abs(found - np.broadcast_to(bytes_ * alpha, found.shape)).max() <= (0 if (alpha == 1).all() else 1)


@pytest.mark.parametrize(
    ("kind", "bits", "key"), [(0, 2, [1]), (0, 8, [100]), (0, 16, [25700]), (2, 8, [1, 2, 3]), (2, 16, [300, 2, 3])]
)
def test_the_transparent_colour_of_png_is_that_of_its_raw_samples(kind: int, bits: int, key: list[int]) -> None:
    values = RANDOM.integers(1, 2**bits, (6, 6, len(key)))
    values[0, 0] = key
    values[0, 1] = np.array(key) + 1
    expected = values >> 8 if kind == 2 and bits == 16 else level(values, bits)
    expected[(values == key).all(axis=-1)] = 0
    content = png(values, bits, kind, before=chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
    np.testing.assert_array_equal(shown(content, 3), np.broadcast_to(expected, (6, 6, 3)))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"Software\0\0" + zlib.compress(b"annotation " * 200_000)),
        chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 1_000_000),
    ],
)
def test_metadata_of_png_may_have_any_size(metadata: bytes) -> None:
    values = RANDOM.integers(0, 256, (8, 8, 1))
    np.testing.assert_array_equal(shown(png(values, 8, before=metadata)), values[..., 0])


def test_orientation_of_png_is_that_of_exif_or_of_xmp() -> None:
    values = RANDOM.integers(0, 256, (4, 6, 1))
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    raw = b"\nexif\n%8d\n" % (6 + len(exif)) + (b"Exif\0\0" + exif).hex().encode()
    for before in (
        chunk(b"eXIf", exif),
        chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<tiff:Orientation>6</tiff:Orientation>")),
    ):
        np.testing.assert_array_equal(shown(png(values, 8, before=before)), np.rot90(values[..., 0], -1))


def test_damaged_png_is_refused() -> None:
    good = png(RANDOM.integers(0, 256, (32, 32, 1)), 8)
    turned = bytearray(good)
    turned[60] ^= 1
    refused(bytes(turned), "checksum of its chunk 'IDAT' is wrong")
    refused(good[:-12], "truncated PNG: its end is missing")
    refused(good[:200], "truncated PNG")
    refused(png(np.full((4, 4, 1), 3), 2, 3, palette=bytes(9)), "index 3 of 3 colours")
    refused(good.replace(good[33:-12], b""), "it has no pixels")
    refused(png(np.zeros((2, 2, 1), int), 8, before=chunk(b"acTL", struct.pack(">II", 5, 0))), "5 frames")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 9, 8, 0, 0, 0, 0))
    refused(good[:8] + header + chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b""), "data|small|read")


def test_pictures_of_few_levels_say_so() -> None:
    wide = (4095 * scene()).astype(np.uint16)
    assert said(png(wide[..., None], 16)) == (DARK,)
    assert said(tiff(30000 + wide, 16)) == (DARK,)
    assert (
        said(png(wide[..., None], 16), window="0:4095")
        == said(tiff(wide, 12))
        == said(encoded(Image.fromarray(GRAY)))
        == ()
    )
    np.testing.assert_array_equal(shown(png(wide[..., None], 16), window="0:4095"), level(wide, 12))
    assert said(png(wide[..., None] // 1024, 2)) == (FEW,)
    assert said(encoded(gray(7))) == (ONE,)
    deep = np.repeat((4095 * scene()).astype(int)[..., None], 3, axis=-1)
    assert said(png(deep, 16, 2)) == (FEW,)  # colours too
    for mode, kind in (("RGBA", "png"), ("LA", "png"), ("RGBA", "tiff")):
        assert said(encoded(Image.fromarray(GRAY).convert(mode.replace("A", "")).convert(mode), kind)) == ()
        clear = Image.fromarray(GRAY).convert(mode)
        clear.putalpha(0)
        assert said(encoded(clear, kind)) == (CLEAR,)


def test_a_picture_whose_centre_is_flat_says_so() -> None:
    values = np.full((32, 96), 90, np.uint8)
    values[:, :20] = GRAY[:32, :20]
    content = encoded(Image.fromarray(values))
    for crop in CROPS:
        remarks = decode_image(content, ImageSpec(16, 1, crop))[1]
        assert remarks == ((ONE,) if crop == "center" else ())
