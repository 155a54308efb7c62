"""JPEG whose data prove whole is read as Pillow reads it, and no other."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidjax.data.formats.read import open_picture
from tests.data.images import encoded, refused, said, scene


def jpeg(values: np.ndarray, **options: Any) -> bytes:
    return encoded(Image.fromarray(values), "jpg", quality=92, **options)


GRAY = (255 * scene(96)).astype(np.uint8)
COLOURS = np.dstack([GRAY, GRAY[::-1], GRAY.T])
KINDS = [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}]


def zeroed(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def cut_and_closed(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"\xff\xd9"


def lost_block(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes(512) + content[half + 512 :]


def nearly_whole(content: bytes) -> bytes:
    return content[:-12] + b"\xff\xd9"


@pytest.mark.parametrize("damage", [zeroed, cut_and_closed, lost_block, nearly_whole])
@pytest.mark.parametrize("options", KINDS, ids=["baseline", "progressive", "optimised", "restarts"])
@pytest.mark.parametrize("values", [GRAY, COLOURS], ids=["gray", "colours"])
def test_damaged_jpeg_is_refused(damage: Callable, options: dict[str, Any], values: np.ndarray) -> None:
    refused(damage(jpeg(values, **options)), "damaged JPEG|truncated JPEG")


def test_a_progressive_jpeg_without_its_last_scan_is_refused() -> None:
    content = jpeg(GRAY, progressive=True)
    last = content.rindex(b"\xff\xda")
    assert np.asarray(Image.open(io.BytesIO(content[:last] + b"\xff\xd9"))).shape == GRAY.shape
    refused(content[:last] + b"\xff\xd9", "a part of its progressive data is missing")


@pytest.mark.parametrize("options", KINDS, ids=["baseline", "progressive", "optimised", "restarts"])
def test_sound_jpeg_has_the_pixels_of_pillow_and_may_lack_its_end_marker_or_have_more_behind_it(options: dict) -> None:
    for values in (GRAY, COLOURS, np.zeros((64, 96), np.uint8)):
        content = jpeg(values, **options)
        expected = np.asarray(Image.open(io.BytesIO(content)))
        for file in (content, content[:-2], content[:-2] + bytes(700), content + bytes(700), content + content):
            np.testing.assert_array_equal(open_picture(file).samples, expected)
    assert any("lack the end marker" in one for one in said(jpeg(GRAY, **options)[:-2]))
    assert not said(jpeg(GRAY, **options) + b"more")


def test_jpeg_of_a_rare_coding_is_refused_by_name() -> None:
    content = jpeg(GRAY)
    for code, name in ((0xC3, "lossless"), (0xC9, "arithmetic"), (0xC5, "rare")):
        refused(content.replace(b"\xff\xc0", bytes([0xFF, code])), name)
    start = content.index(b"\xff\xc0") + 4
    refused(content[:start] + b"\x0c" + content[start + 1 :], "12 bits a sample")
