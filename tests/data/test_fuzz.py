"""Any picture of any kind comes out as the specifications say, and any damage is refused or changes what it touches.

The reference is written with NumPy alone: shades of samples, their tags and their transparency.
"""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.read import open_picture
from covidjax.data.levels import to_8_bits
from covidjax.data.picture import CROPS, ImageSpec, decode_image
from tests.data.written import chunk, png, tiff

FEW = settings(report_multiple_bugs=False, max_examples=150, deadline=None, derandomize=True, database=None)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
PNG_KINDS = [(0, bits) for bits in (1, 2, 4, 8, 16)] + [(3, bits) for bits in (1, 2, 4, 8)]
PNG_KINDS += [(kind, bits) for kind in (2, 4, 6) for bits in (8, 16)]


def to_bytes(values: np.ndarray, bits: int, colours: bool) -> np.ndarray:
    """Samples as levels of 8 bits: rounded, but of 16-bit colours the high byte."""
    return values // 256 if colours and bits == 16 else np.floor(255 * values / (2**bits - 1) + 0.5)


def luminance(colours: np.ndarray) -> np.ndarray:
    return colours @ (0.299, 0.587, 0.114) if colours.ndim == 3 else colours


def found(content: bytes) -> np.ndarray:
    return np.asarray(to_8_bits(open_picture(content)).convert("L")).astype(float)


@st.composite
def png_files(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A PNG file and the luminance that it shows over black."""
    (height, width), (kind, bits) = draw(SIZES), draw(st.sampled_from(PNG_KINDS))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    values = random.integers(0, 2**bits, (height, width, channels))
    before, palette, alpha = b"", b"", np.ones((height, width, 1))
    shown = to_bytes(values, bits, colours=kind > 0)
    if kind == 3:
        colours = random.integers(0, 256, (2**bits, 3), np.uint8)
        palette, shown = colours.tobytes(), colours[values[..., 0]].astype(float)
        if draw(st.booleans()):
            opacity = random.integers(0, 256, draw(st.integers(1, 2**bits)), np.uint8)
            before = chunk(b"tRNS", opacity.tobytes())
            alpha = np.append(opacity, np.full(256, 255))[values] / 255
    elif kind in (4, 6):
        shown, alpha = shown[..., :-1], shown[..., -1:] / 255
    elif draw(st.booleans()):
        key = values[0, 0]
        before, alpha = chunk(b"tRNS", struct.pack(f">{channels}H", *key)), (values != key).any(axis=-1, keepdims=True)
    if draw(st.booleans()):
        before += chunk(b"tEXt", b"Comment\0" + bytes(draw(st.integers(0, 3000))))
    flat = shown * alpha
    return png(values, bits, kind, before, palette, draw(st.booleans())), luminance(
        flat[..., 0] if flat.shape[-1] == 1 else flat
    )


@st.composite
def tiff_files(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A TIFF file of whole numbers without a sign, and the luminance that it shows."""
    (height, width), bits = draw(SIZES), draw(st.integers(1, 16))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    photometric = draw(st.sampled_from([0, 1, 2, 3]))
    values = random.integers(0, 2**bits, (height, width, 3 if photometric == 2 else 1))
    tags: dict[str, Any] = {
        "order": draw(st.sampled_from("<>")),
        "compression": draw(st.sampled_from([1, 8, 32773])),
        "planar": draw(st.sampled_from([1, 2])),
        "sample_format": draw(st.sampled_from([1, None])),
    }
    tags["fill_order"] = draw(st.sampled_from([1, 2])) if tags["compression"] == 1 else 1
    tags[draw(st.sampled_from(["tile", "rows_per_strip"]))] = draw(st.sampled_from([16, 32]))
    shown = to_bytes(values, bits, colours=photometric == 2)
    if photometric == 0:
        shown = 255 - to_bytes(values, bits, colours=False)
    elif photometric == 3:
        colours = random.integers(0, 65536, (3, 2**bits))
        tags["more"], shown = [(320, 3, colours.ravel().tolist())], (colours // 256).T[values[..., 0]].astype(float)
    return tiff(values, bits, photometric, **tags), luminance(shown[..., 0] if shown.shape[-1] == 1 else shown)


@FEW
@given(st.one_of(png_files(), tiff_files()))
def test_png_and_tiff_of_any_kind_show_what_the_specifications_say(case: tuple[bytes, np.ndarray]) -> None:
    content, expected = case
    assert np.abs(found(content) - expected).max() <= 1


@FEW
@given(
    SIZES,
    st.sampled_from(["L", "RGB", "CMYK", "1", "P", "RGBA", "LA"]),
    st.sampled_from(["jpeg", "bmp", "png", "tiff"]),
    st.booleans(),
    st.sampled_from(CROPS),
    st.integers(0, 2**32),
)
def test_what_pillow_writes_is_read_as_pillow_shows_it(
    size: tuple[int, int], mode: str, kind: str, odd: bool, crop: str, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels).convert("L" if mode == "LA" else mode).convert(mode)
    chosen: dict[str, dict[str, Any]] = {
        "jpeg": {"progressive": odd},
        "tiff": {"compression": "tiff_lzw"} if odd else {},
    }
    options = chosen.get(kind, {})
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, KeyError):
        return  # no such mode in this format
    content = buffer.getvalue()
    with Image.open(io.BytesIO(content)) as again:
        expected = np.asarray(again.convert("RGB").convert("L")).astype(float)
    assert np.abs(found(content) - expected).max() <= 1
    pixels, _ = decode_image(content, ImageSpec(16, 1, crop))
    assert pixels.shape == (16, 16, 1)


def damaged(content: bytes, how: str, place: float, value: int) -> bytes:
    at = min(int(place * len(content)), len(content) - 1)
    if how == "byte":
        return content[:at] + bytes([content[at] ^ value]) + content[at + 1 :]
    if how == "cut":
        return content[:at]
    return content[:at] + bytes(value) + content[at + value :]


DAMAGE = (st.sampled_from(["byte", "cut", "zeros"]), st.floats(0, 1), st.integers(1, 255))


@FEW
@given(png_files(), *DAMAGE)
def test_damaged_png_is_refused_or_the_same(case: tuple[bytes, np.ndarray], how: str, place: float, value: int) -> None:
    try:
        shown = found(damaged(case[0], how, place, value))
    except BadImageError as error:
        assert "\n" not in str(error)
    else:
        assert np.abs(shown - case[1]).max() <= 1


@FEW
@given(tiff_files(), *DAMAGE)
def test_damaged_tiff_is_refused_or_has_pixels(
    case: tuple[bytes, np.ndarray], how: str, place: float, value: int
) -> None:
    try:
        shown = found(damaged(case[0], how, place, value))
    except BadImageError as error:
        assert "\n" not in str(error)
    else:
        assert how != "cut"
        assert shown.size


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}], ids=str)
@FEW
@given(st.floats(0.1, 1, exclude_max=True), st.integers(40, 600))
def test_jpeg_that_lacks_a_part_is_refused(options: dict[str, Any], place: float, length: int) -> None:
    """Cut anywhere behind its header, with and without an end marker, or with zeros where data had been."""
    y, x = np.mgrid[:64, :80] / 64
    values = 128 + 90 * np.sin(7 * x) * np.cos(5 * y) + np.random.default_rng(1).normal(0, 6, x.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90, **options)
    content = buffer.getvalue()
    start = content.index(b"\xff\xda") + 14
    at = start + int(place * (len(content) - start - 8))
    broken = [content[:at], content[:at] + b"\xff\xd9"]
    if not options.get("progressive"):
        broken.append(
            content[:at] + bytes(min(length, len(content) - at - 2)) + content[at + length : -2] + b"\xff\xd9"
        )
    for file in broken:
        with pytest.raises(BadImageError):
            open_picture(file)
