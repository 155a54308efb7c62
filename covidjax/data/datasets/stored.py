"""Image files as they are stored: JPEG and PNG byte for byte, all else as PNG without loss."""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import pixel_array

from covidjax.data.formats.base import BadImageError, Picture, one_line_reasons
from covidjax.data.formats.read import open_picture
from covidjax.data.levels import to_16_bits
from covidjax.data.picture import open_pair, own_pixels

DICOM_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
DICOM_KINDS = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422")


def stored(content: bytes) -> bytes:
    """The bytes of a JPEG or PNG file that can be decoded, and those of a PNG for any other image.

    A PNG is gray or RGB, with the pixels that `covidjax.data.picture.own_pixels` makes of the other format, and of gray
    with more than 8 bits with all levels, in 16 bits.
    Raises BadImageError with the reason.
    """
    return _stored(content, open_picture(content))


def stored_pair(content: bytes, mask_content: bytes, mask_name: str, num_classes: int) -> tuple[bytes, bytes]:
    """An image, and its mask as PNG of class ids, as `covidjax.data.picture.decode_pair` demands and reads them.

    Raises BadImageError with the reasons of both.
    """
    picture, ids = open_pair(content, mask_content, mask_name, num_classes)
    return _stored(content, picture), png(Image.fromarray(ids))


def _stored(content: bytes, picture: Picture) -> bytes:
    if picture.format in ("JPEG", "PNG"):
        return content
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


def image_in_dicom(content: bytes) -> bytes:
    """The JPEG file in a DICOM file of one frame, byte for byte, and all other pixels as PNG.

    In the PNG the levels of gray, 2 to the power of BitsStored, span all of 8 or 16 bits, and the image of MONOCHROME1,
    which has white for 0, is inverted (PS3.3 C.7.6.3.1.2). Modality and VOI tables are not applied.
    Raises BadImageError with the reason, such as a compression that no installed decoder of pydicom reads.
    """
    with one_line_reasons():
        try:
            dataset = pydicom.dcmread(io.BytesIO(content))
        except InvalidDicomError as error:
            raise BadImageError("not a DICOM file") from error
        if "PixelData" not in dataset:
            raise BadImageError("a DICOM file without an image")
        if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
            raise BadImageError(f"{frames} frames: save each as a file of its own")
        kind = dataset.get("PhotometricInterpretation", "MONOCHROME2")
        if dataset.file_meta.TransferSyntaxUID in DICOM_JPEG and kind != "MONOCHROME1":
            return get_frame(dataset.PixelData, 0, number_of_frames=1)
        if kind not in DICOM_KINDS or dataset.PixelRepresentation:
            raise BadImageError(f"{kind} of {'signed' if dataset.PixelRepresentation else 'unsigned'} values")
        values, highest = pixel_array(dataset), 2**dataset.BitsStored - 1
    values = np.minimum(values, highest).astype(np.int64)
    if kind == "MONOCHROME1":
        values = highest - values
    dtype = np.uint16 if highest > 255 and values.ndim == 2 else np.uint8
    return png(Image.fromarray((values * np.iinfo(dtype).max // highest).astype(dtype)))
