"""DICOM files are images like others: their values, tables and tags give the shades that the standard says."""

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from covidjax.data import sources
from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.dicom import BURNT_IN, SURPRISE
from covidjax.data.formats.read import open_picture
from covidjax.data.levels import DARK
from covidjax.data.picture import ImageSpec, decode_image, decode_pair, own_pixels
from covidjax.errors import UserError
from covidjax.runs.images import list_images
from tests.data.images import dataset_config

RANDOM = np.random.default_rng(0)
PERSON = "Doe^Jane"


def file(pixels: np.ndarray, bits: int, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """An uncompressed DICOM file of a person."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PERSON, "0004cfab", "19700101"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = (pixels.byteswap() if syntax == ExplicitVRBigEndian else pixels).tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(content: bytes, window: str = "") -> np.ndarray:
    return own_pixels(open_picture(content), 1, window=window)[..., 0].astype(int)


def grey(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return np.floor(255 * np.clip((values.astype(float) - black) / (white - black), 0, 1) + 0.5).astype(int)


CT = RANDOM.integers(0, 4096, (9, 7)).astype(np.uint16)
SIGNED = RANDOM.integers(-2048, 2048, (9, 7)).astype(np.int16)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("pixels", "bits", "tags", "expected"),
    [
        pytest.param(CT, 12, {}, grey(CT, 0, 4095), id="full range of 12 bits"),
        pytest.param(CT, 16, {}, grey(CT, 0, 65535), id="full range of 16 bits"),
        pytest.param(SIGNED, 12, {}, grey(SIGNED, -2048, 2047), id="full range of signed 12 bits"),
        pytest.param(
            CT,
            12,
            {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 400},
            grey(2.0 * CT - 1000, 39.5 - 199.5, 39.5 + 199.5),
            id="slope, intercept and window",
        ),
        pytest.param(
            SIGNED,
            16,
            {"WindowCenter": [-600, 40], "WindowWidth": [1500, 400], "VOILUTFunction": "LINEAR_EXACT"},
            grey(SIGNED, -600 - 750, -600 + 750),
            id="the first of two exact windows",
        ),
        pytest.param(
            SIGNED,
            16,
            {"WindowCenter": 0, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
            np.floor(255 / (1 + np.exp(-4 * SIGNED / 900)) + 0.5).astype(int),
            id="sigmoid",
        ),
        pytest.param(
            CT,
            12,
            {"WindowCenter": 2000, "WindowWidth": 1},
            np.where(CT > 1999.5, 255, 0),
            id="the narrowest window",
        ),
        pytest.param(CT, 12, {"PhotometricInterpretation": "MONOCHROME1"}, 255 - grey(CT, 0, 4095), id="white is zero"),
        pytest.param(
            CT,
            12,
            {"RescaleSlope": -1, "RescaleIntercept": 100},
            grey(100.0 - CT, 100 - 4095, 100),
            id="a slope below zero",
        ),
    ],
)
def test_gray_is_what_the_standard_says(
    syntax: str, pixels: np.ndarray, bits: int, tags: dict[str, Any], expected: np.ndarray
) -> None:
    np.testing.assert_array_equal(shown(file(pixels, bits, syntax, **tags)), expected)


def test_what_the_functional_groups_of_a_frame_say_holds() -> None:
    def group(**tags: Any) -> list[Dataset]:
        item = Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        return [item]

    shared = group(PixelValueTransformationSequence=group(RescaleSlope=2, RescaleIntercept=-1000))
    frames = group(FrameVOILUTSequence=group(WindowCenter=40, WindowWidth=400))
    content = file(CT, 12, SharedFunctionalGroupsSequence=shared, PerFrameFunctionalGroupsSequence=frames)
    np.testing.assert_array_equal(shown(content), grey(2.0 * CT - 1000, 39.5 - 199.5, 39.5 + 199.5))


def table(first: int, values: np.ndarray, bits: int) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", values.tolist())
    return [item]


def test_voi_table_comes_before_a_window_and_after_the_modality() -> None:
    curve = np.round(65535 * np.linspace(0, 1, 1000) ** 2).astype(int)
    content = file(CT, 12, RescaleSlope=1, RescaleIntercept=10, VOILUTSequence=table(1000, curve, 16), WindowCenter=5)
    expected = np.floor(255 * curve[np.clip(CT.astype(int) + 10 - 1000, 0, 999)] / 65535 + 0.5)
    np.testing.assert_array_equal(shown(content), expected)
    steps = np.arange(4096) // 16
    np.testing.assert_array_equal(shown(file(CT, 12, ModalityLUTSequence=table(0, steps, 8))), steps[CT])


def test_a_window_of_the_config_is_in_modality_values_and_replaces_that_of_the_file() -> None:
    content = file(CT, 12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    np.testing.assert_array_equal(shown(content, "-1000:400"), grey(CT - 1024.0, -1000, 400))


def test_colours_and_palettes() -> None:
    colours = RANDOM.integers(0, 256, (5, 6, 3), np.uint8)
    np.testing.assert_array_equal(own_pixels(open_picture(file(colours, 8)), 3), colours)
    indices = RANDOM.integers(0, 4, (5, 6)).astype(np.uint8)
    tags: dict[str, Any] = {}
    entries = RANDOM.integers(0, 65536, (3, 4)).astype("<u2")
    for name, own in zip(("Red", "Green", "Blue"), entries, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = own.tobytes()
    content = file(indices, 8, PhotometricInterpretation="PALETTE COLOR", **tags)
    np.testing.assert_array_equal(own_pixels(open_picture(content), 3), (entries >> 8).T[indices])


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("CT_small.dcm", -32768 - 1024, 32767 - 1024),
        ("MR_small.dcm", 600 - 0.5 - 799.5, 600 - 0.5 + 799.5),
        ("MR_small_RLE.dcm", 600 - 0.5 - 799.5, 600 - 0.5 + 799.5),
        ("MR_small_bigendian.dcm", 600 - 0.5 - 799.5, 600 - 0.5 + 799.5),
        ("MR_small_implicit.dcm", 600 - 0.5 - 799.5, 600 - 0.5 + 799.5),
        ("MR_small_jpeg_ls_lossless.dcm", 600 - 0.5 - 799.5, 600 - 0.5 + 799.5),
        ("MR_small_jp2klossless.dcm", 600 - 0.5 - 799.5, 600 - 0.5 + 799.5),
    ],
)
def test_files_of_scanners_in_several_transfer_syntaxes(name: str, black: float, white: float) -> None:
    """The uncompressed twins hold the values as little-endian numbers at the end of the file."""
    source = "CT_small.dcm" if name == "CT_small.dcm" else "MR_small.dcm"
    raw = pydicom.dcmread(str(get_testdata_file(source, download=False)))
    side = raw.Rows
    values = np.frombuffer(raw.PixelData, "<i2").reshape(side, side).astype(float)
    values = values * float(raw.get("RescaleSlope", 1)) + float(raw.get("RescaleIntercept", 0))
    content = Path(str(get_testdata_file(name, download=False))).read_bytes()
    np.testing.assert_array_equal(shown(content), grey(values, black, white))


def test_what_no_image_can_be_made_of_is_refused_in_one_line() -> None:
    cases = {
        "2 frames": Path(str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))).read_bytes(),
        "without an image": Path(str(get_testdata_file("rtplan.dcm", download=False))).read_bytes(),
        "values of 32 bits.*dataset.window": file(CT.astype(np.uint32), 32),
        "YBR_PARTIAL_420": file(np.zeros((4, 4, 3), np.uint8), 8, PhotometricInterpretation="YBR_PARTIAL_420"),
        "are damaged": file(CT, 12)[:-20],
        "window of the width 0": file(CT, 12, WindowCenter=1, WindowWidth=0),
    }
    for reason, content in cases.items():
        with warnings.catch_warnings(), pytest.raises(BadImageError, match=reason) as caught:
            warnings.simplefilter("error")
            decode_image(content, ImageSpec(8, 1, "center"))
        assert "\n" not in str(caught.value)
        assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("JPGExtended.dcm", b"\x04\x00\x01\x00"),
        ("MR_small_jpeg_ls_lossless.dcm", b"\x00\x40\x00\x40"),
        ("MR_small_jp2klossless.dcm", b"\x00\x00\x00\x40\x00\x00\x00\x40"),
    ],
)
def test_a_frame_that_claims_another_size_is_refused_before_it_takes_all_memory(name: str, sizes: bytes) -> None:
    content = Path(str(get_testdata_file(name, download=False))).read_bytes()
    assert open_picture(content).samples.size
    start = max(content.rfind(mark) for mark in (b"\xff\xc1", b"\xff\xf7", b"\xff\x4f\xff\x51"))
    at = content.index(sizes, start)
    with pytest.raises(BadImageError, match="the header of its pixels"):
        open_picture(content[:at] + b"\xff" * len(sizes) + content[at + len(sizes) :])


def test_surprises_and_burnt_in_annotation_are_said() -> None:
    def said(**tags: Any) -> tuple[str, ...]:
        return decode_image(file(CT, 12, **tags), ImageSpec(8, 1, "squash"))[1]

    assert said() == ()
    assert said(BurnedInAnnotation="YES") == (BURNT_IN,)
    assert said(PresentationLUTShape="INVERSE") == (SURPRISE,)
    assert decode_image(file(CT // 16, 12), ImageSpec(8, 1, "squash"))[1] == (DARK,)


def test_class_folders_of_dicom_train_like_others_and_keep_nothing_of_the_person(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for label in ("healthy", "ill"):
        (root / "train" / label).mkdir(parents=True)
        for number in range(8):
            (root / "train" / label / f"{number}.dcm").write_bytes(file(CT + number, 12))
    for _ in range(2):
        examples = sources.load(dataset_config(root), "train")
        assert examples.classes == ("healthy", "ill")
        assert len(examples) == 14
    texts = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert texts
    for secret in (PERSON.encode(), b"0004cfab", b"19700101"):
        assert not any(secret in text for text in texts)


def test_a_mask_in_dicom_is_refused() -> None:
    with pytest.raises(BadImageError, match="its mask m: DICOM, which is read as an image: export the mask as PNG"):
        decode_pair(file(CT, 12), file(CT % 2, 12), "m", 2, ImageSpec(8, 1, "center"))


def test_without_the_library_a_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(file(CT, 12))
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from covidjax.data.formats.read import open_picture\n"
        "try: open_picture(open(sys.argv[1], 'rb').read())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.dcm")]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    assert found == f"{UserError.__name__} DICOM files need pydicom: pip install 'covidjax[data]'"


def test_files_without_an_ending_are_images_where_they_begin_as_dicom_does(tmp_path: Path) -> None:
    root = tmp_path / "root"
    content = file(np.arange(64, dtype=np.uint8).reshape(8, 8), 8)
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for name in ("IM0001", "1.2.840.7", "1.2.840.8"):
                (root / split / label / name).write_bytes(content)
    for name, other in (("DICOMDIR", content), ("README", b"read me"), ("log.1", b"x" * 200), ("a.bak", content)):
        (root / "train" / "a" / name).write_bytes(other)
    examples = sources.load(dataset_config(root), "train")
    own = ("1.2.840.7", "1.2.840.8", "IM0001")
    assert examples.names == tuple(f"train/{label}/{name}" for label in "ab" for name in own)
    assert any(note.startswith("4 entries are no images by their ending") for note in examples.notes)
    assert len(list_images(root / "val").names) == 6


def test_masks_are_found_by_the_whole_name_of_a_file_without_an_ending(tmp_path: Path) -> None:
    content = file(np.arange(64, dtype=np.uint8).reshape(8, 8), 8)
    mask = np.eye(8, dtype=np.uint8)
    for name in ("1.2.7", "1.2.8"):
        for folder in ("images", "masks"):
            (tmp_path / "val" / folder).mkdir(exist_ok=True, parents=True)
        (tmp_path / "val" / "images" / name).write_bytes(content)
        Image.fromarray(mask).save(tmp_path / "val" / "masks" / f"{name}.png")
    rows = sources.listed(dataset_config(tmp_path), "val", masks=True).rows
    assert sorted((row.name, row.masks) for row in rows) == [
        (f"val/images/{name}", (f"val/masks/{name}.png",)) for name in ("1.2.7", "1.2.8")
    ]
