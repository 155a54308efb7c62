"""PNG (ISO/IEC 15948): raw samples of every depth; every checksum is verified, and text of any size is passed over."""

import re
import struct
import zlib

import imagecodecs
import numpy as np
from PIL import Image

from covidjax.data.formats.base import BadImageError, Picture, check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE = 0, 2, 3
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
EXIF_TEXT, XMP_TEXT = b"Raw profile type exif", b"XML:com.adobe.xmp"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
MAX_TEXT = 2**26  # bytes that a compressed text may have, where it may hold an orientation


def read(content: bytes) -> Picture:
    """The picture of a PNG file. Raises BadImageError with the reason, and what decoders raise."""
    chunks = _chunks(content)
    header = chunks[0][1]
    if chunks[0][0] != b"IHDR" or len(header) != 13:
        raise BadImageError("damaged PNG: it does not begin with its header")
    width, height, bits, kind, _, _, interlace = struct.unpack(">IIBBBBB", header)
    check_size(width, height)
    if bits not in DEPTHS.get(kind, ()):
        raise BadImageError(f"no PNG has {bits} bits in colour type {kind}")
    first = {name: body for name, body in reversed(chunks)}
    frames = struct.unpack(">I", first.get(b"acTL", b"")[:4] or b"\0\0\0\1")[0]
    if frames > 1:
        raise BadImageError(f"{frames} frames: save each as a file of its own")
    # A palette is decoded as gray, whose samples are then the indices; without a palette libpng expands nothing else.
    header = struct.pack(">IIBBBBB", width, height, bits, GRAY if kind == PALETTE else kind, 0, 0, interlace)
    data = b"".join(body for name, body in chunks if name == b"IDAT")
    if not data:
        raise BadImageError("damaged PNG: it has no pixels")
    samples = imagecodecs.png_decode(SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b""))
    if samples.shape[:2] != (height, width):
        raise BadImageError("damaged PNG: the size of its pixels is not that of its header")
    if bits < 8:
        samples = samples // (255 // (2**bits - 1))
    alpha = None
    if kind in (4, 6):
        samples, alpha = samples[..., 0] if kind == 4 else samples[..., :3], samples[..., -1]
    palette = _palette(first, samples) if kind == PALETTE else None
    if kind in (GRAY, RGB) and b"tRNS" in first:
        count = 3 if kind == RGB else 1
        key = np.array(struct.unpack(f">{count}H", first[b"tRNS"][: 2 * count]))
        alpha = (samples.reshape(height, width, count) != key).any(axis=-1)
    picture = Picture(samples, bits, "PNG", palette=palette, alpha=alpha)
    return picture.turned(_orientation(chunks))


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Names and bodies of all chunks to IEND. Raises BadImageError for a wrong checksum and a missing end."""
    chunks: list[tuple[bytes, bytes]] = []
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        name, body = content[position + 4 : position + 8], content[position + 8 : position + 8 + length]
        check = content[position + 8 + length : position + 12 + length]
        if len(check) < 4:
            break
        if zlib.crc32(name + body) != int.from_bytes(check, "big"):
            raise BadImageError(f"damaged PNG: the checksum of its chunk {name.decode('ascii', 'replace')!r} is wrong")
        if name == b"IEND":
            return chunks if chunks else [(name, body)]
        chunks.append((name, body))
        position += 12 + length
    raise BadImageError("truncated PNG: its end is missing")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _palette(chunks: dict[bytes, bytes], indices: np.ndarray) -> np.ndarray:
    entries = chunks.get(b"PLTE", b"")
    if not entries or len(entries) % 3:
        raise BadImageError("damaged PNG: it has no palette")
    colours = np.frombuffer(entries, np.uint8).reshape(-1, 3)
    if (highest := int(indices.max())) >= len(colours):
        raise BadImageError(f"damaged PNG: its pixels have the palette's index {highest} of {len(colours)} colours")
    if b"tRNS" not in chunks:
        return colours
    alpha = np.full(len(colours), 255, np.uint8)
    own = np.frombuffer(chunks[b"tRNS"], np.uint8)[: len(colours)]
    alpha[: len(own)] = own
    return np.column_stack([colours, alpha])


def _orientation(chunks: list[tuple[bytes, bytes]]) -> object:
    """Of EXIF, as a chunk or as text, or else of XMP."""
    texts = {}
    for name, body in chunks:
        keyword, _, rest = body.partition(b"\0")
        if name in (b"tEXt", b"zTXt", b"iTXt") and keyword in (EXIF_TEXT, XMP_TEXT):
            texts[keyword] = _text(name, rest)
    exif = dict(chunks).get(b"eXIf", b"")
    if not exif and EXIF_TEXT in texts:
        exif = bytes.fromhex("".join(texts[EXIF_TEXT].decode("latin-1").split("\n")[3:]))
    if exif:
        found = Image.Exif()
        found.load(exif)
        if (orientation := found.get(0x0112)) is not None:
            return orientation
    match = XMP_ORIENTATION.search(texts.get(XMP_TEXT, b""))
    return int(match[1]) if match else None


def _text(name: bytes, rest: bytes) -> bytes:
    """What stands behind the keyword of a text chunk."""
    if name == b"tEXt":
        return rest
    if name == b"zTXt":
        packed, rest = True, rest[1:]
    else:
        packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    if not packed:
        return rest
    unpack = zlib.decompressobj()
    text = unpack.decompress(rest, MAX_TEXT)
    if unpack.unconsumed_tail:
        raise BadImageError(f"its metadata have more than {MAX_TEXT >> 20} MiB")
    return text
