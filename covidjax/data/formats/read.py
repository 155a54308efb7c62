"""The bytes of an image file to its picture, by the reader that its first bytes call for."""

from covidjax.data.extra import import_with_extra
from covidjax.data.formats import bmp, jpeg, png, tiff
from covidjax.data.formats.base import BadImageError, Picture, one_line_reasons

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", *DICOM_SUFFIXES)
READERS = {
    b"\xff\xd8\xff": jpeg.read,
    png.SIGNATURE: png.read,
    b"BM": bmp.read,
    b"II*\0": tiff.read,
    b"MM\0*": tiff.read,
    b"II+\0": tiff.read,
    b"MM\0+": tiff.read,
}


DICOM_START = 132  # bytes: a preamble of 128, and the word by which a file is known


def is_dicom(content: bytes) -> bool:
    """Whether the bytes are those of a DICOM file, which may begin like a TIFF file."""
    return content[128:132] == b"DICM"


def open_picture(content: bytes, frame: int = 0) -> Picture:
    """The picture of a JPEG, PNG, BMP, TIFF or DICOM file, told by its content, upright.

    frame: of a DICOM file with several: which one, from 1; 0: such files are refused.
    Raises BadImageError with the reason; UserError for DICOM where the libraries that read it are not installed.
    """
    if not content:
        raise BadImageError("the file is empty")
    with one_line_reasons():
        if is_dicom(content):
            return import_with_extra("covidjax.data.formats.dicom", "DICOM files").read(content, frame)
        for beginning, reader in READERS.items():
            if content.startswith(beginning):
                return reader(content)
    raise BadImageError("not a JPEG, PNG, BMP, TIFF or DICOM image")
