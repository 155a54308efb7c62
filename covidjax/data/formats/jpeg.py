"""JPEG (ITU-T T.81): Pillow's pixels, of data that prove whole; Pillow itself decodes damaged ones in silence."""

import dataclasses
import re

import imagecodecs
import numpy as np
import simplejpeg
from PIL import ImageOps

from covidjax.data.formats.base import BadImageError, Picture, check_size, opened

END = b"\xff\xd9"
MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # but for stuffed bytes, restarts and the start
FRAMES = {0xC0: "baseline", 0xC1: "sequential", 0xC2: "progressive"}
OTHER_FRAMES = {0xC3: "lossless", 0xC9: "arithmetic coding", 0xCA: "arithmetic coding", 0xCB: "arithmetic coding"}
NO_FRAMES = (0xC4, 0xC8, 0xCC)  # Huffman tables, reserved, conditions of arithmetic coding
TABLES, SCAN, LAST = 0xC4, 0xDA, 0xD9
LOST = bytes(16)  # most of a block of 64 coefficients, where zero bits are not the shortest way to say 'flat'
MOST_SCANS = 200  # a file of more takes minutes, and is made for that
HARMLESS = ("Invalid SOS parameters", "Unknown Adobe color transform")
BEHIND = b"\x5a\xa5\x3c\xc3" * 64  # bits that a whole picture does not need
NO_END = "lack the end marker of JPEG, and have all their pixels"


@dataclasses.dataclass
class _Found:
    """What the markers say: first symbols of Huffman tables by class and number; bits that are missing, by component
    and coefficient; whether there is an end."""

    components: int = 0
    scans: int = 0
    frame: str = ""
    first: dict[int, int] = dataclasses.field(default_factory=dict)
    missing: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    ended: bool = False


def read(content: bytes) -> Picture:
    """The picture of a JPEG file. Raises BadImageError with the reason, and what decoders raise."""
    ended = check(content)
    image = opened(content if ended else _closed(content), "JPEG")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return Picture(np.asarray(image), 8, "JPEG", lossy=True, remarks=() if ended else (NO_END,))


def read_deep(content: bytes) -> np.ndarray:
    """The samples of a JPEG stream of 12 bits or without loss, as DICOM has them; colours as they are stored.

    [height, width(, 3)] uint8 or uint16. Raises BadImageError where zeros stand in place of data, and where it ends
    before the last pixel: bits behind a whole one change nothing.
    """
    content = content.rstrip(b"\0\xff")
    if not _markers(content, deep=True).ended or not content.endswith(END):
        raise BadImageError("truncated JPEG: it has no end marker")
    samples = imagecodecs.jpeg8_decode(content)
    if not np.array_equal(samples, imagecodecs.jpeg8_decode(content.removesuffix(END) + BEHIND + END)):
        raise BadImageError("truncated JPEG: its data ends before its last pixel")
    return samples


def check(content: bytes) -> bool:
    """Whether a JPEG stream has an end marker. Raises BadImageError where any of its pixels is not what was saved.

    That is: markers are whole, every component has all bits of all coefficients, libjpeg has no warning, and no block
    of zeros stands where the data cannot have any. What a few turned bits do to Huffman codes that stay valid cannot be
    known: JPEG has no checksum.
    """
    found = _markers(content)
    if not found.frame:
        raise BadImageError("truncated JPEG: it has no frame")
    if any(missing.any() for missing in found.missing.values()) or len(found.missing) < found.components:
        raise BadImageError(f"truncated JPEG: a part of its {found.frame} data is missing")
    colours = {1: "GRAY", 4: "CMYK"}.get(found.components, "RGB")
    whole = content if found.ended else _closed(content)
    try:
        simplejpeg.decode_jpeg(whole, colours, min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        if not str(error).startswith(HARMLESS):
            raise BadImageError(f"truncated or damaged JPEG: {error}") from error
    return found.ended


def _closed(content: bytes) -> bytes:
    """With an end marker, where the file breaks off, in place of zeros behind its data, which end with ones."""
    content = content.rstrip(b"\0")
    return content + (b"\0" if content.endswith(b"\xff") else b"") + END


def _markers(content: bytes, deep: bool = False) -> _Found:
    """deep: whether frames of 12 bits and without loss are allowed."""
    found, match = _Found(), MARKER.search(content, 2)
    while match:
        code, start = match[1][0], match.end()
        if code == LAST:
            found.ended = True
            break
        end = start + int.from_bytes(content[start : start + 2], "big")
        body = content[start + 2 : end]
        if end < start + 2 or end > len(content):
            raise BadImageError("truncated JPEG: it ends within its header")
        match = MARKER.search(content, end)
        if 0xC0 <= code <= 0xCF and code not in NO_FRAMES:
            _frame(found, code, body, deep)
        elif code == TABLES:
            _tables(found, body)
        elif code == SCAN:
            _scan(found, body)
            zeros = content.find(LOST, end, match.start() if match else len(content.rstrip(b"\0")))
            if zeros >= 0 and not _zeros_are_flat(found, body):
                raise BadImageError(f"damaged JPEG: zeros from byte {zeros} on, where it had pixels")
    return found


def _frame(found: _Found, code: int, body: bytes, deep: bool) -> None:
    if found.frame or len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise BadImageError("damaged JPEG: its frame header is wrong")
    if code not in FRAMES and not (deep and code in OTHER_FRAMES):
        raise BadImageError(f"JPEG with {OTHER_FRAMES.get(code, 'a rare coding')}: save it as PNG")
    if body[0] != 8 and not deep:
        raise BadImageError(f"JPEG with {body[0]} bits a sample: save it as PNG of 16 bits")
    check_size(int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
    found.frame, found.components = (FRAMES | OTHER_FRAMES)[code], body[5]


def _tables(found: _Found, body: bytes) -> None:
    while len(body) > 17:
        found.first[body[0]] = body[17]
        body = body[17 + sum(body[1:17]) :]


def _scan(found: _Found, body: bytes) -> None:
    count = body[0] if body else 0
    if not found.frame or len(body) != 4 + 2 * count:
        raise BadImageError("damaged JPEG: a scan header is wrong")
    found.scans += 1
    if found.scans > MOST_SCANS:
        raise BadImageError(f"JPEG with more than {MOST_SCANS} scans: save it anew")
    first, last, approximation = body[1 + 2 * count :]
    for component in body[1 : 1 + 2 * count : 2]:
        missing = found.missing.setdefault(component, np.full(64, 99))
        if found.frame == "progressive":
            missing[first : last + 1] = approximation & 15
        else:
            missing[:] = 0


def _zeros_are_flat(found: _Found, body: bytes) -> bool:
    """Whether zero bits say 'as before' and 'end of the block' in every table of a scan, or refine nothing."""
    first, last, approximation = body[-3:]
    parts = body[2 : 1 + 2 * body[0] : 2]
    tables = [part >> 4 for part in parts if first == 0] + [16 + (part & 15) for part in parts if last > 0]
    return approximation > 15 or not any(found.first.get(number, 1) & 15 for number in tables)
