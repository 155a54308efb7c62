"""TIFF 6.0: samples of any integer depth as their tags say; what this cannot read right is refused with the reason."""

import io
import logging
import math

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from covidjax.data.formats import jpeg
from covidjax.data.formats.base import BadImageError, Picture, check_size

COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, CCITT, LZW, JPEG, deflate, PackBits
FAX_OR_NONE = (1, 2, 3, 4)
JPEG = 7
UNCHECKED = {5: imagecodecs.lzw_decode, 32773: imagecodecs.packbits_decode}  # where a wrong length tells of damage
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
OTHERS = {4: "a transparency mask", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "a colour filter array"}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
ASSOCIATED, UNASSOCIATED = 1, 2  # alpha, of ExtraSamples
EXTRA = "have further samples of no stated meaning, which were left out"

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is checked here


def read(content: bytes) -> Picture:
    """The picture of a TIFF file. Raises BadImageError with the reason, and what decoders raise."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = len(file.pages)
        if pages != 1:
            raise BadImageError(f"{pages} pages: save each as a file of its own" if pages else "TIFF without a page")
        if file.is_imagej and (stacked := int((file.imagej_metadata or {}).get("images", 1))) > 1:
            raise BadImageError(f"{stacked} pages: save each as a file of its own")
        page = file.pages.first
        bits, kind = _checked(page)
        _check_segments(page, content)
        samples = page.asarray(squeeze=False)
    if (depth := samples.shape[1]) != 1:
        raise BadImageError(f"{depth} planes: save each as a file of its own")
    samples = np.concatenate([plane[0] for plane in samples], axis=-1)
    samples = samples.astype(np.uint8) if samples.dtype == bool else samples
    orientation = page.tags.valueof(274)
    colours, extras = COLOURS[kind], tuple(page.extrasamples)
    remarks: tuple[str, ...] = ()
    alpha = None
    if UNASSOCIATED in extras:
        alpha = samples[..., colours + extras.index(UNASSOCIATED)]
    elif extras and ASSOCIATED not in extras:  # premultiplied samples are those over black
        remarks = (EXTRA,)
    samples = samples[..., :colours]
    lossy = page.compression == JPEG
    if kind == CMYK:
        samples = np.asarray(Image.fromarray(samples, "CMYK").convert("RGB"))
    if colours == 1:
        samples = samples[..., 0]
    no_range = ""
    if page.sampleformat != UNSIGNED or bits > 16:
        name = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "floating-point"}[page.sampleformat]
        no_range = f"{name} values of {bits} bits"
    palette = _palette(page, bits, samples) if kind == PALETTE else None
    picture = Picture(
        np.ascontiguousarray(samples),
        bits,
        "TIFF",
        no_range=no_range,
        palette=palette,
        alpha=alpha,
        white_is_zero=kind == WHITE_IS_ZERO,
        lossy=lossy,
        remarks=remarks,
    )
    return picture.turned(int(orientation) if orientation else None)


def _checked(page: tifffile.TiffPage) -> tuple[int, int]:
    """Bits of a sample and the photometric interpretation. Raises BadImageError for what is not read."""
    width, height = page.imagewidth, page.imagelength
    check_size(width, height)
    kind, compression = page.tags.valueof(262), int(page.compression)
    if kind is None:
        raise BadImageError("TIFF that does not say how its values are meant (PhotometricInterpretation)")
    kind = int(kind)
    if kind not in COLOURS:
        name = OTHERS.get(kind, f"PhotometricInterpretation {kind}")
        raise BadImageError(f"TIFF with {name}: save it as gray or RGB")
    if compression not in COMPRESSIONS:
        raise BadImageError(f"TIFF with compression {compression}: save it without, or with LZW or deflate")
    if page.sampleformat not in (UNSIGNED, SIGNED, FLOAT):
        raise BadImageError(f"TIFF with SampleFormat {page.sampleformat}: save it with whole numbers")
    if isinstance(page.bitspersample, tuple) or page.dtype is None:
        raise BadImageError(f"TIFF with {page.bitspersample} bits a sample: save it with 8 or 16")
    bits = int(page.bitspersample)
    colours = page.samplesperpixel - len(page.extrasamples)
    if colours != COLOURS[kind] or page.samplesperpixel > 8:
        raise BadImageError(f"TIFF with {page.samplesperpixel} samples a pixel, where {COLOURS[kind]} are meant")
    plain = page.sampleformat == UNSIGNED and bits <= 16
    if kind not in (WHITE_IS_ZERO, BLACK_IS_ZERO) and not plain:
        raise BadImageError(f"TIFF colours of {bits} bits, or signed or floating-point ones: save it with 8 or 16 bits")
    if kind == YCBCR and compression != JPEG:
        raise BadImageError("TIFF with YCbCr colours: save it as RGB")
    if kind == CMYK and (bits != 8 or compression == JPEG or page.tags.valueof(332, 1) != 1 or page.extrasamples):
        raise BadImageError("TIFF with inks: save it as RGB")
    if page.fillorder != 1 and compression not in FAX_OR_NONE:
        raise BadImageError("TIFF with a FillOrder that its compression leaves without a meaning: save it anew")
    if compression == JPEG and bits != 8:
        raise BadImageError(f"TIFF with JPEG of {bits} bits: save it with LZW or deflate")
    return bits, kind


def _check_segments(page: tifffile.TiffPage, content: bytes) -> None:
    """Raises BadImageError for strips and tiles that are not there whole: they would come out as zeros."""
    offsets, counts = page.dataoffsets, page.databytecounts
    what = "tile" if page.is_tiled else "strip"
    needed = math.prod(page.chunked)
    width, height = page.imagewidth, min(page.rowsperstrip or page.imagelength, page.imagelength)
    if page.is_tiled:
        width, height = page.tilewidth, page.tilelength
        check_size(width, height)
    row = -(-width * page.bitspersample * (page.samplesperpixel if page.planarconfig == 1 else 1) // 8)
    strips = -(-page.imagelength // height)
    if len(offsets) < needed or len(counts) < needed:
        raise BadImageError(f"damaged TIFF: {min(len(offsets), len(counts))} {what}s of {needed}")
    for index, (offset, count) in enumerate(zip(offsets[:needed], counts[:needed], strict=True)):
        rows = height if page.is_tiled else min(height, page.imagelength - index % strips * height)
        plain = rows * row if page.compression == 1 else 1
        if count < plain or offset <= 0 or offset + count > len(content):
            raise BadImageError(f"truncated or damaged TIFF: {what} {index + 1} of {needed} is not whole")
        data, tables = content[offset : offset + count], page.jpegtables
        if page.compression == JPEG:
            jpeg.check(tables[:-2] + data[2:] if tables else data)
        unpack = UNCHECKED.get(page.compression) if page.fillorder == 1 else None
        if unpack and len(unpack(data, out=height * row + 1)) not in (rows * row, height * row):
            raise BadImageError(f"damaged TIFF: {what} {index + 1} of {needed} has another size")


def _palette(page: tifffile.TiffPage, bits: int, indices: np.ndarray) -> np.ndarray:
    colours = page.colormap
    if colours is None or colours.shape != (3, 2**bits):
        raise BadImageError("damaged TIFF: it has no palette, or one of another size")
    return (colours.T >> 8).astype(np.uint8) if colours.max() > 255 else colours.T.astype(np.uint8)
