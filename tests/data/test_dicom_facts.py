"""What DICOM files say beside their pixels: patients, columns, frames; and damage in their streams."""

import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame

from covidjax import tasks
from covidjax.config import default_config
from covidjax.data import sources
from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.dicom import Facts, facts
from covidjax.data.formats.read import open_picture
from covidjax.errors import UserError
from tests.commands import read_table
from tests.data.images import dataset_config, write_image
from tests.data.test_dicom import CT, file


def folders(root: Path, patients: dict[str, str]) -> Path:
    """Class folders of DICOM files: 24 images, the PatientID of each by a pattern of its number."""
    for number in range(24):
        label = "ill" if number % 2 else "healthy"
        (root / label).mkdir(parents=True, exist_ok=True)
        tags = {name: value.format(number // 3) for name, value in patients.items()}
        (root / label / f"{number}.dcm").write_bytes(file(CT + number, 12, **tags))
    return root


def test_class_folders_are_split_by_the_patient_id_and_keep_nothing_of_it(tmp_path: Path) -> None:
    tags = {"PatientID": "MRN77{}", "ViewPosition": "AP", "Modality": "DX", "Manufacturer": "ACME"}
    dataset = dataset_config(folders(tmp_path / "root", tags))
    parts = {split: sources.listed(dataset, split) for split in ("train", "val", "test")}
    owners = [set(files.patients) for files in parts.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 8, "a patient is torn apart"
    assert all(files.patients_known and len(set(files.patients)) < len(files.rows) for files in parts.values())
    assert "8 patients are told apart by the PatientID of DICOM files, which is not kept" in parts["train"].notes
    examples = sources.load(dataset, "train")
    assert set(examples.patients) <= {f"dicom-{number}" for number in range(1, 9)}
    assert examples.facts == {"view": ("AP",) * len(examples), "source": ("DX ACME",) * len(examples)}
    assert "MRN77" not in repr((examples, parts))


def test_one_patient_id_for_all_or_for_some_tells_no_patients_apart(tmp_path: Path) -> None:
    same = sources.listed(dataset_config(folders(tmp_path / "same", {"PatientID": "ANONYMOUS"})), "train")
    assert not same.patients_known
    assert "the PatientID of all 24 DICOM files is the same, and tells no patients apart" in same.notes
    root = folders(tmp_path / "some", {"PatientID": "{}"})
    (root / "ill" / "1.dcm").write_bytes(file(CT, 12, PatientID=""))
    some = sources.listed(dataset_config(root), "train")
    assert not some.patients_known
    assert "1 of 24 images have no PatientID: patients are not told apart by it" in some.notes


def test_a_patient_on_both_sides_of_split_folders_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folders(tmp_path / split, {"PatientID": split + "{}"})
    assert sources.listed(dataset_config(tmp_path), "train").patients_known
    (tmp_path / "test" / "ill" / "1.dcm").write_bytes(file(CT, 12, PatientID="train0"))
    with pytest.raises(UserError, match="1 patients are in both test and train: dicom-1"):
        sources.listed(dataset_config(tmp_path), "train")


def test_evaluated_masks_have_the_columns_of_their_dicom_images(tmp_path: Path) -> None:
    for number in range(24):
        tags = {"PatientID": f"MRN{number // 2}", "ViewPosition": "PA" if number % 2 else "AP", "Modality": "CR"}
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.dcm").write_bytes(file(CT + number, 12, **tags))
        write_image(tmp_path / "masks" / f"{number}.png", 255, CT.shape[::-1])
    examples = sources.load(dataset_config(tmp_path, mask_classes=("background", "lung")), "val", masks=True)
    task = tasks.of("unet")
    masks = task.targets(examples)
    task.evaluate([(jnp.eye(2)[masks], jnp.asarray(masks), len(masks))], examples, default_config().loss, tmp_path)
    rows = read_table(tmp_path / "predictions_val.csv")
    assert len(rows) == len(examples) > 0
    for row in rows:
        view = "PA" if int(Path(row["file"]).stem) % 2 else "AP"
        assert (row["view"], row["source"], row["patient"][:6]) == (view, "CR", "dicom-")
    assert "MRN" not in (tmp_path / "predictions_val.csv").read_text()


def test_view_spacing_and_source_are_words_of_the_device_and_nothing_else() -> None:
    tags: dict[str, Any] = {
        "ViewPosition": "PA",
        "PixelSpacing": [0.5, 0.25],
        "Modality": "CR",
        "Manufacturer": "A^B\nC;D",
    }
    own = facts(io.BytesIO(file(CT, 12, **tags, ManufacturerModelName="x" * 99)))
    assert (own.patient_id, own.view, own.spacing) == ("0004cfab", "PA", "0.5x0.25")
    assert own.source == "CR A B C D " + "x" * 64
    assert facts(io.BytesIO(file(CT, 12, ImagerPixelSpacing=[0.1, 0.1]))).spacing == "0.1x0.1"
    assert facts(io.BytesIO(b"no file")) == Facts()


@pytest.mark.parametrize("spacing", [b"0.5 ", b"wide\\wide "])
def test_a_spacing_that_is_none_takes_nothing_from_what_else_the_header_says(spacing: bytes) -> None:
    content = file(CT, 12, PixelSpacing=[0.125, 0.125]).replace(b"0.125\\0.125 ", spacing.ljust(12))
    own = facts(io.BytesIO(content))
    assert (own.patient_id, own.spacing) == ("0004cfab", "")


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_rle_2frame.dcm", "SC_rgb_rle_16bit_2frame.dcm", "rtdose_1frame.dcm", "rtdose.dcm"],
)
def test_a_frame_is_chosen_by_its_number(name: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    dataset = pydicom.dcmread(path)
    count = int(dataset.get("NumberOfFrames", 1))
    frames = pydicom.pixels.pixel_array(dataset).reshape(count, dataset.Rows, dataset.Columns, -1)
    content = path.read_bytes()
    for number in {1, count}:
        found = open_picture(content, number).samples
        scale = float(dataset.get("RescaleSlope", 1))
        np.testing.assert_array_equal(found.reshape(frames.shape[1:]), frames[number - 1] * scale)
    if count > 1:
        with pytest.raises(BadImageError, match=f"{count} frames, and dataset.frame is {count + 1}: save each"):
            open_picture(content, count + 1)


@pytest.mark.parametrize(
    "name",
    [
        "JPGExtended.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        pytest.param("JPEGLSNearLossless_16.dcm", marks=pytest.mark.slow),  # the decoder takes seconds to give up
    ],
)
def test_damage_of_deep_jpeg_in_dicom_is_refused(name: str) -> None:
    dataset = pydicom.dcmread(str(get_testdata_file(name, download=False)))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    half = len(frame) // 2
    bodies = {
        "cut": frame[:half],
        "cut and closed": frame[:half] + b"\xff\xd9",
        "half of it zeros": frame[:half] + bytes(len(frame) - half),
    }
    for what, body in bodies.items():
        dataset.PixelData = encapsulate([body])
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        with pytest.raises(BadImageError, match="truncated|damaged"):
            pytest.fail(f"{what} was read: {open_picture(buffer.getvalue())}")
