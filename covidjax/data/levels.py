"""Samples of any depth to the 256 levels that networks take, and what a person has to know of the result."""

import re

import numpy as np
from PIL import Image

from covidjax.data.formats.base import BadImageError, Picture
from covidjax.errors import UserError

WINDOW = re.compile(r"(percentiles:)?(-?[0-9.]+):(-?[0-9.]+)")
WINDOW_WORDS = "low:high in stored values, such as 0:4095, or percentiles:low:high, such as percentiles:1:99"
HANDFUL = 32  # levels, of which a picture of a body has far more
DARK = (
    "use a sixteenth or less of the range of their gray values, such as 12 bits stored as 16, and most of their levels "
    f"are lost: dataset.window rescales them ({WINDOW_WORDS})"
)
FEW = f"come out in {HANDFUL} levels of brightness or fewer"
ONE = "come out in one level of brightness"
CLEAR = "are transparent everywhere, and come out black"
COLOURED = "have colours, to which dataset.window does not apply"


def window_of(text: str) -> tuple[bool, float, float] | None:
    """Whether a window is in percentiles of each picture, and its ends; None for ''. Raises UserError."""
    if not text:
        return None
    match = WINDOW.fullmatch(text)
    try:
        low, high = (float(part) for part in match.groups()[1:]) if match else (0.0, 0.0)
    except ValueError:
        match, low, high = None, 0.0, 0.0
    if not match or low >= high or (match[1] and not 0 <= low < high <= 100):
        raise UserError(f"dataset.window is {text!r}: allowed are '' and {WINDOW_WORDS}")
    return bool(match[1]), low, high


def is_window(value: object) -> bool:
    """Whether a value is a text that `window_of` takes."""
    try:
        return isinstance(value, str) and (window_of(value) is None or True)
    except UserError:
        return False


def to_8_bits(picture: Picture, window: str = "") -> Image.Image:
    """The picture in mode L or RGB, with transparency over black.

    Gray: value / (2**bits - 1), rounded, or by the window; 16-bit colours and alpha: the high byte.
    Raises BadImageError where the file does not say which values are black and white.
    """
    alpha = picture.alpha
    if picture.palette is not None:
        colours = picture.palette[picture.samples]
        values, alpha = colours[..., :3], colours[..., 3] if colours.shape[-1] == 4 else alpha
    elif picture.is_gray:
        values = _gray(picture, window)
    else:
        values = _bytes(picture.samples, picture.bits)
    if alpha is None:
        return Image.fromarray(np.ascontiguousarray(values))
    if alpha.dtype == bool:
        return Image.fromarray(np.where(alpha if values.ndim == 2 else alpha[..., None], values, 0).astype(np.uint8))
    if picture.is_gray and picture.bits == 16 and not window:
        values = _bytes(picture.samples, 16)
    if picture.palette is None:
        alpha = _bytes(alpha, picture.bits)
    layer = Image.fromarray(np.dstack([values, alpha]), "LA" if values.ndim == 2 else "RGBA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")


def to_16_bits(picture: Picture, window: str = "") -> Image.Image | None:
    """A gray picture with all its levels, from 0 to 65535 in mode F; None where 8 bits are all that there is."""
    if not picture.is_gray or picture.alpha is not None or (picture.bits <= 8 and not window):
        return None
    if picture.bits == 16 and not (window or picture.no_range or picture.black_white or picture.white_is_zero):
        return Image.fromarray(picture.samples.astype(np.float32))
    return Image.fromarray((_shades(picture, window) * 65535).astype(np.float32))


def remarks(picture: Picture, levels: Image.Image, pixels: np.ndarray, window: str) -> tuple[str, ...]:
    """What a person has to know of a picture, in words that go behind 'n images'.

    levels: what `to_8_bits` made of it; pixels: what the network takes.
    """
    found = list(picture.remarks)
    if window and not picture.is_gray:
        found.append(COLOURED)
    counts = (levels if levels.mode == "L" else levels.convert("L")).getcolors(HANDFUL)
    if picture.alpha is not None and not picture.alpha.any():
        found.append(CLEAR)
    elif _is_dark(picture) and not window:
        found.append(DARK)
    elif (counts is not None and len(counts) == 1) or pixels.min() == pixels.max():
        found.append(ONE)
    elif counts is not None:
        found.append(FEW)
    return tuple(found)


def _is_dark(picture: Picture) -> bool:
    if not picture.is_gray or picture.bits <= 8 or picture.no_range or picture.alpha is not None:
        return False
    if picture.shades is not None:
        return False
    black, white = picture.black_white or (0, 2**picture.bits - 1)
    return 16 * (float(np.ptp(picture.samples)) + 1) <= abs(white - black) + 1


def _bytes(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples of colours and alpha, from 0 to 2**bits - 1, as uint8."""
    if bits == 8:
        return samples.astype(np.uint8)
    return (samples >> 8).astype(np.uint8) if bits == 16 else _rounded(samples, 2**bits - 1)


def _rounded(samples: np.ndarray, highest: int) -> np.ndarray:
    return ((510 * samples.astype(np.int64) + highest) // (2 * highest)).astype(np.uint8)


def _gray(picture: Picture, window: str) -> np.ndarray:
    if window or picture.no_range or picture.black_white or picture.shades is not None:
        return np.floor(255 * _shades(picture, window) + 0.5).astype(np.uint8)
    highest = 2**picture.bits - 1
    samples = highest - picture.samples if picture.white_is_zero else picture.samples
    return samples.astype(np.uint8) if picture.bits == 8 else _rounded(samples, highest)


def _shades(picture: Picture, window: str) -> np.ndarray:
    """From 0 for black to 1 for white: [height, width] float64."""
    chosen = window_of(window)
    if chosen is not None:
        in_percentiles, low, high = chosen
        if not np.isfinite(picture.samples).all():
            raise BadImageError("it has values that are no numbers")
        if in_percentiles:
            low, high = np.percentile(picture.samples, (low, high))
    elif picture.no_range:
        raise BadImageError(f"{picture.no_range}, of which none is said to be black or white: set dataset.window")
    elif picture.shades is not None:
        return 1 - picture.shades if picture.white_is_zero else picture.shades
    else:
        low, high = picture.black_white or (0, 2**picture.bits - 1)
    values = picture.samples.astype(np.float64)
    shades = np.clip((values - low) / (high - low), 0, 1) if high != low else (values > low).astype(np.float64)
    return 1 - shades if picture.white_is_zero else shades
