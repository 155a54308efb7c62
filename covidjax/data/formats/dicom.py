"""DICOM images (PS3.3 C.7.6, C.11): stored values, through modality and VOI tables, to shades of gray or RGB.

Nothing but `TAGS` is read of a file for its picture: no name, date, number or text of a person can reach what is
written. Of what `facts` reads beside it, `covidjax.data.facts` replaces the PatientID.
"""

import dataclasses
import io
import logging
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, convert_color_space, pixel_array

from covidjax.data.formats import jpeg
from covidjax.data.formats.base import BadImageError, Picture, check_size

TAGS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData"),
    *("DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "PresentationLUTShape", "BurnedInAnnotation", "LUTDescriptor", "LUTData"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{kind}PaletteColorLookupTableData" for kind in ("Red", "Green", "Blue", "SegmentedRed", "SegmentedGreen")),
    "SegmentedBluePaletteColorLookupTableData",
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
FACTS = ["PatientID", "ViewPosition", "PixelSpacing", "ImagerPixelSpacing", "Modality", "Manufacturer"]
FACTS += ["ManufacturerModelName", "SharedFunctionalGroupsSequence", "PixelMeasuresSequence"]
GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # of a frame: slope, intercept and window
NEEDED = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored"),
    "PixelRepresentation",
)
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG and JPEG-LS
JPEG_2000_START = b"\xff\x4f\xff\x51"
GRAYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
BURNT_IN = "have annotation burnt into their pixels (BurnedInAnnotation)"
SURPRISE = "have a PresentationLUTShape that contradicts their PhotometricInterpretation, which was followed"

# A warning would print what a file holds.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom|pylibjpeg|openjpeg")


def read(content: bytes, frame: int = 0) -> Picture:
    """The picture of a DICOM file. Raises BadImageError with a reason without any text of the file.

    frame: of a file with several: which one, from 1; 0: such files are refused.

    Gray: slope and intercept or the modality table; then the VOI table, or else the first window, or else the full
    range of what is stored; MONOCHROME1 is inverted. `dataset.window` replaces the second, in modality values.
    """
    try:
        return _read(pydicom.dcmread(io.BytesIO(content), specific_tags=TAGS), frame)
    except BadImageError:
        raise
    except Exception as error:  # of many kinds, whose words may hold bytes of the file
        raise BadImageError(f"damaged DICOM file, or one that is not read ({type(error).__name__})") from error


def _read(dataset: Dataset, frame: int) -> Picture:
    if "PixelData" not in dataset:
        raise BadImageError("a DICOM file without an image of whole numbers")
    if missing := [name for name in NEEDED if dataset.get(name) is None]:
        raise BadImageError(f"a DICOM file without {', '.join(missing)}")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1 and not 1 <= frame <= frames:
        asked = f", and dataset.frame is {frame}" if frame else ""
        raise BadImageError(f"{frames} frames{asked}: save each as a file of its own, or choose by dataset.frame")
    index = frame - 1 if frames > 1 else 0
    for name, number in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
        own = dataset[name][number] if len(dataset.get(name) or ()) > number else Dataset()
        for group in (group for group in GROUPS if group in own):
            dataset.update({element.tag: element for element in own[group][0] if element.keyword in TAGS})
    check_size(int(dataset.Columns), int(dataset.Rows))
    kind, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsStored)
    remarks = (BURNT_IN,) if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES" else ()
    if kind in GRAYS:
        return _gray(dataset, _stored(dataset, index), kind == "MONOCHROME1", bits, remarks)
    if kind == "PALETTE COLOR":
        samples, bits = (
            apply_color_lut(_stored(dataset, index), dataset),
            int(dataset.RedPaletteColorLookupTableDescriptor[2]),
        )
    elif kind in COLOURS:
        samples = _stored(dataset, index)
    else:
        raise BadImageError(f"DICOM with {kind} colours: export it as PNG")
    return Picture(samples, bits, "DICOM", remarks=remarks)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the header of a file says beside its picture; '' where it says nothing.

    patient_id: to tell patients apart; it is to be kept nowhere
    view: the direction of the rays, such as AP; spacing: mm between rows and between columns, such as 0.7x0.7
    source: modality, manufacturer and model
    """

    patient_id: str = ""
    view: str = ""
    spacing: str = ""
    source: str = ""


def facts(file: Path | io.BytesIO) -> Facts:
    """The facts of a DICOM file, without its pixels; empty ones where it cannot be read."""
    try:
        dataset = pydicom.dcmread(file, specific_tags=FACTS, stop_before_pixels=True)
        device = (_words(dataset.get(name)) for name in ("Modality", "Manufacturer", "ManufacturerModelName"))
        return Facts(
            str(dataset.get("PatientID") or "").strip(),
            _words(dataset.get("ViewPosition")),
            _spacing(dataset),
            " ".join(filter(None, device)),
        )
    except Exception:  # what is wrong with the file is told where its picture is read
        return Facts()


def _spacing(dataset: Dataset) -> str:
    """'' where it is no number, too, which takes nothing from what else the header says."""
    groups = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    measures = (groups[0].get("PixelMeasuresSequence") or [Dataset()])[0]
    places = ((dataset, "PixelSpacing"), (dataset, "ImagerPixelSpacing"), (measures, "PixelSpacing"))
    try:
        spacing = next((found for place, name in places if (found := place.get(name))), ())
        return "x".join(f"{float(length):g}" for length in spacing)
    except (TypeError, ValueError):
        return ""


def _words(value: object) -> str:
    """Letters and digits, as texts of devices have them."""
    return " ".join(re.sub(r"[^\w.+/-]+", " ", str(value or ""), flags=re.ASCII).split())[:64]


def _stored(dataset: Dataset, index: int) -> np.ndarray:
    """The stored values of a frame; of JPEG and JPEG-LS, as a reader has them that sees damage."""
    syntax = dataset.file_meta.TransferSyntaxUID
    samples = None
    if syntax in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes):
        frame = _frame(dataset, index)
        shape = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
        if _frame_shape(frame) != shape:  # a decoder that trusts the frame takes all memory
            raise BadImageError(f"the header of its pixels ({syntax.name}) is damaged")
        plain = syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit) and dataset.BitsAllocated == 8
        if plain:
            jpeg.check(frame)
        if plain and dataset.SamplesPerPixel == 1:
            return jpeg.read(frame).samples
        try:
            if syntax in uid.JPEGLSTransferSyntaxes:
                samples = imagecodecs.jpegls_decode(frame)
            elif syntax in uid.JPEGTransferSyntaxes and not plain:
                samples = jpeg.read_deep(frame)
        except BadImageError:
            raise
        except Exception as error:
            raise _damaged(syntax) from error
    if samples is not None and dataset.PhotometricInterpretation.startswith("YBR"):
        return convert_color_space(samples, str(dataset.PhotometricInterpretation), "RGB")
    if samples is not None:
        sign = 2 ** (max(int(dataset.BitsStored), int(samples.max()).bit_length()) - 1)
        return (samples.astype(np.int32) ^ sign) - sign if dataset.PixelRepresentation else samples
    try:
        return pixel_array(dataset, index=index)
    except Exception as error:  # of many kinds, whose words may hold bytes of the file
        raise _damaged(syntax) from error


def _damaged(syntax: uid.UID) -> BadImageError:
    name = " ".join(syntax.name.split())
    return BadImageError(f"its pixels ({name}) are damaged, or of a form that is not read")


def _frame(dataset: Dataset, index: int) -> bytes:
    """The compressed bytes of a frame."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    extended = (offsets[0], offsets[1]) if offsets[0] and offsets[1] else None
    return get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=extended)


def embedded_jpeg(content: bytes) -> bytes | None:
    """The JPEG file of 8 bits in a DICOM file, where its pixels are the picture as it is shown."""
    dataset = pydicom.dcmread(io.BytesIO(content), specific_tags=TAGS)
    shown = dataset.get("PhotometricInterpretation") == "MONOCHROME2" and not any(
        dataset.get(name) for name in ("VOILUTSequence", "WindowCenter", "ModalityLUTSequence", "RescaleIntercept")
    )
    if not shown or dataset.file_meta.TransferSyntaxUID != uid.JPEGBaseline8Bit or dataset.get("RescaleSlope", 1) != 1:
        return None
    return _frame(dataset, 0)


def _frame_shape(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples that the header of a JPEG, JPEG-LS or JPEG 2000 frame states; zeros without one."""
    if (at := frame.find(JPEG_2000_START)) >= 0:
        right, bottom, left, top = struct.unpack(">4I", frame[at + 8 : at + 24])
        return bottom - top, right - left, int.from_bytes(frame[at + 40 : at + 42], "big")
    at = 2
    while frame[at : at + 1] == b"\xff":
        if frame[at + 1] in START_OF_FRAME:
            rows, columns, samples = struct.unpack(">HHB", frame[at + 5 : at + 10])
            return rows, columns, samples
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big") if frame[at + 1] != 0xFF else 1
    return 0, 0, 0


def _gray(dataset: Dataset, values: np.ndarray, inverted: bool, bits: int, remarks: tuple[str, ...]) -> Picture:
    if values.ndim != 2:
        raise BadImageError(f"DICOM of gray with {values.shape[-1]} samples a pixel")
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    ends = np.array([low, low + 2**bits - 1])
    outside = (values < ends[0]) | (values > ends[1])
    if outside.any():
        raise BadImageError(f"DICOM with {int(outside.sum())} values beyond its {bits} bits")
    shape = str(dataset.get("PresentationLUTShape", ""))
    if shape and (shape == "INVERSE") != inverted:
        remarks = (*remarks, SURPRISE)
    samples, black_white = apply_modality_lut(values, dataset), _full_range(dataset, ends)
    no_range = f"values of {bits} bits" if bits > 16 else ""
    shades = None
    center = _first(dataset.get("WindowCenter"))
    if dataset.get("VOILUTSequence"):
        highest = 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        shades = np.clip(apply_voi(np.rint(samples).astype(np.int64), dataset) / highest, 0, 1)
    elif center is not None:
        width = _first(dataset.get("WindowWidth"))
        function = str(dataset.get("VOILUTFunction", "") or "LINEAR").upper()
        if width is None or width <= 0 or (function == "LINEAR" and width < 1):
            raise BadImageError(f"DICOM with a window of the width {width}")
        if function == "SIGMOID":
            shades = 1 / (1 + np.exp(-4 * (samples - center) / width))
        elif function == "LINEAR_EXACT":
            black_white = (center - width / 2, center + width / 2)
        elif function == "LINEAR":
            black_white = (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)
        else:
            raise BadImageError(f"DICOM with the VOI function {function}")
    if shades is not None or center is not None:
        no_range = ""
    return Picture(
        samples,
        bits,
        "DICOM",
        black_white=black_white,
        no_range=no_range,
        shades=shades,
        white_is_zero=inverted,
        remarks=remarks,
    )


def _full_range(dataset: Dataset, ends: np.ndarray) -> tuple[float, float]:
    """What the lowest and the highest value that can be stored are after the modality table or the slope."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    low, high = sorted(float(end) for end in apply_modality_lut(ends, dataset))
    return low, high


def _first(value: Any) -> float | None:
    """The first of several values, or the only one."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
