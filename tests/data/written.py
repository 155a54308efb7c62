"""Files written by hand from the specifications, with nothing of the readers in them."""

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np


def chunk(name: bytes, body: bytes) -> bytes:
    """Of PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def packed(rows: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Samples [height, samples of a row], high bits first, each row filled up to a byte."""
    if bits in (8, 16, 32, 64):
        numbers = rows if rows.dtype.kind == "f" and bits > 16 else rows.astype(np.int64).astype(f"u{bits // 8}")
        return (numbers if order == "<" else numbers.byteswap()).tobytes()
    ones = (rows[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(ones.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


# Of Adam7: the first row and column of each pass, and the steps from one to the next.
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(
    samples: np.ndarray, bits: int, kind: int = 0, before: bytes = b"", palette: bytes = b"", interlaced: bool = False
) -> bytes:
    """A PNG file. samples: [height, width, channels]; kind: its colour type; before: chunks ahead of the pixels."""
    height, width = samples.shape[:2]
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    parts = [samples[top::down, left::right] for top, left, down, right in passes]
    rows = [row.reshape(1, -1) for part in parts if part.size for row in part]
    raw = b"".join(b"\0" + packed(row, bits) for row in rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    colours = chunk(b"PLTE", palette) if palette else b""
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + colours + before + pixels + chunk(b"IEND", b"")


def packbits(content: bytes) -> bytes:
    """Literal runs alone, as PackBits of TIFF allows."""
    runs = (content[start : start + 128] for start in range(0, len(content), 128))
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


COMPRESSIONS: dict[int, Callable[[bytes], bytes]] = {1: bytes, 8: zlib.compress, 32773: packbits}


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int = 1,
    *,
    sample_format: int | None = 1,
    order: str = "<",
    compression: int = 1,
    planar: int = 1,
    rows_per_strip: int = 0,
    tile: int = 0,
    fill_order: int = 1,
    extras: Sequence[int] = (),
    more: Sequence[tuple[int, int, Sequence[int]]] = (),
) -> bytes:
    """A TIFF file. samples: [height, width] or [height, width, channels]; more: number, type (3, 4), values of tags."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, count = samples.shape
    planes = [samples] if planar == 1 else [samples[..., [index]] for index in range(count)]
    pieces = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            for top in range(0, height, tile):
                pieces += [padded[top : top + tile, left : left + tile] for left in range(0, width, tile)]
        else:
            step = rows_per_strip or height
            pieces += [plane[top : top + step] for top in range(0, height, step)]
    data = [packed(piece.reshape(len(piece), -1), bits, order) for piece in pieces]
    if fill_order == 2:
        flipped = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
        data = [part.translate(flipped) for part in data]
    data = [COMPRESSIONS[compression](part) for part in data]
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * count), 259: (3, [compression])}
    tags |= {262: (3, [photometric]), 277: (3, [count])}
    lengths = [len(part) for part in data]
    if tile:
        tags |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, [0] * len(data)), 325: (4, lengths)}
    else:
        tags |= {273: (4, [0] * len(data)), 278: (4, [rows_per_strip or height]), 279: (4, lengths)}
    tags |= {284: (3, [planar])} if count > 1 else {}
    tags |= {266: (3, [2])} if fill_order == 2 else {}
    tags |= {338: (3, list(extras))} if extras else {}
    tags |= {339: (3, [sample_format] * count)} if sample_format else {}
    tags |= {number: (kind, list(values)) for number, kind, values in more}
    start = 8 + 2 + 12 * len(tags) + 4
    beyond = sum(-(-struct.calcsize("HI"[kind == 4]) * len(values) // 2) * 2 for kind, values in tags.values())
    first, at = start + beyond, []
    for part in data:
        at.append(first)
        first += len(part)
    place = 324 if tile else 273
    tags[place] = (4, at)
    table, tail = struct.pack(order + "H", len(tags)), b""
    for number, (kind, values) in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}{'HI'[kind == 4]}", *values)
        if len(body) > 4:
            position, tail = start + len(tail), tail + body + b"\0" * (len(body) % 2)
            body = struct.pack(order + "I", position)
        table += struct.pack(order + "HHI", number, kind, len(values)) + body.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return (head + table + bytes(4) + tail).ljust(start + beyond, b"\0") + b"".join(data)
