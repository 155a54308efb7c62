"""Image files as they are stored: JPEG and PNG byte for byte, all else as PNG without loss."""

import io

from PIL import Image

from covidjax.data.picture import BadImageError, open_pair, open_picture, own_pixels


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


def jpeg_in_dicom(content: bytes) -> bytes:
    """The JPEG file in a DICOM file of one image, such as those of the RSNA challenge: nothing is decoded.

    PS3.5 A.4: encapsulated pixel data are items, the first an offset table, the others fragments of the file.
    Raises BadImageError for pixels that are no JPEG.
    """
    if content[128:132] != b"DICM":
        raise BadImageError("not a DICOM file")
    position = content.rfind(b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff")  # (7FE0,0010), of undefined length
    position += 12 if position >= 0 else 0
    fragments = []
    while position > 0 and content[position : position + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        fragments.append(content[position + 8 : position + 8 + length])
        position += 8 + length
    jpeg = b"".join(fragments[1:])
    if not jpeg.startswith(b"\xff\xd8"):
        raise BadImageError("a DICOM file without a JPEG in it: export it as PNG")
    return jpeg
