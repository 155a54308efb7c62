"""Image files as they are stored: JPEG and PNG byte for byte, all else as PNG."""

import io

import numpy as np
from PIL import Image

from covidjax.data.formats import dicom
from covidjax.data.formats.base import Picture, one_line_reasons
from covidjax.data.formats.read import open_picture
from covidjax.data.levels import remarks, to_8_bits, to_16_bits
from covidjax.data.picture import open_pair, own_pixels


def stored(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a JPEG or PNG file that can be decoded, of a JPEG in DICOM too, and of a PNG for any other image.

    A PNG is gray or RGB, with the pixels that `covidjax.data.picture.own_pixels` makes of the other format, and of gray
    with more than 8 bits with all levels, in 16 bits.
    Returns remarks too, see `covidjax.data.levels.remarks`. Raises BadImageError with the reason.
    """
    picture = open_picture(content)
    return _stored(content, picture), _remarks(picture)


def stored_pair(
    content: bytes, mask_content: bytes, mask_name: str, num_classes: int
) -> tuple[bytes, bytes, tuple[str, ...]]:
    """An image, and its mask as PNG of class ids, as `covidjax.data.picture.decode_pair` demands and reads them.

    Returns remarks on the image too. Raises BadImageError with the reasons of both.
    """
    picture, ids = open_pair(content, mask_content, mask_name, num_classes)
    return _stored(content, picture), png(Image.fromarray(ids)), _remarks(picture)


def _remarks(picture: Picture) -> tuple[str, ...]:
    with one_line_reasons():
        plain = to_8_bits(picture)
        return remarks(picture, plain, np.asarray(plain), "")


def _stored(content: bytes, picture: Picture) -> bytes:
    if picture.format in ("JPEG", "PNG"):
        return content
    if picture.format == "DICOM" and (jpeg := dicom.embedded_jpeg(content)) is not None:
        return jpeg
    with one_line_reasons():
        deep = to_16_bits(picture)
    if deep is not None:
        return png(Image.fromarray(np.rint(np.asarray(deep)).astype(np.uint16)))
    if picture.is_gray and picture.alpha is None:
        return png(Image.fromarray(own_pixels(picture, 1)[..., 0]))
    return png(Image.fromarray(own_pixels(picture, 3)))


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
