"""Image files as they are stored: JPEG and PNG byte for byte, all else as PNG without loss."""

import io

from PIL import Image

from covidjax.data.picture import open_pair, open_picture, own_pixels


def stored(content: bytes) -> bytes:
    """The bytes of a JPEG or PNG file that can be decoded, and those of a PNG for any other image.

    A PNG has 8 bits, gray or RGB, with the pixels that `covidjax.data.picture.decode_image` makes of the other format.
    Raises BadImageError with the reason.
    """
    return _stored(content, open_picture(content))


def stored_pair(content: bytes, mask_content: bytes, mask_name: str, num_classes: int) -> tuple[bytes, bytes]:
    """An image, and its mask as PNG of class ids, as `covidjax.data.picture.decode_pair` demands and reads them.

    Raises BadImageError with the reasons of both.
    """
    image, ids = open_pair(content, mask_content, mask_name, num_classes, lambda picture: _stored(content, picture))
    return image, png(Image.fromarray(ids))


def _stored(content: bytes, picture: Image.Image) -> bytes:
    channels = 1 if picture.mode in ("1", "L", "F") or picture.mode.startswith("I") else 3
    pixels = own_pixels(picture, channels)
    if picture.format in ("JPEG", "MPO", "PNG"):
        return content
    return png(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
