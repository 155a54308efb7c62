"""What is wrong with the files of a data set: all of it in one message, and nothing half-prepared left behind."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from covidjax.errors import UserError
from launch import prepare as command
from tests.commands import call, contents, refusal, user_error

pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
pytest.importorskip("nibabel", reason="nibabel is not installed: make setup installs it")
from covidjax.data.datasets.prepare import load_builder, prepare
from covidjax.data.datasets.records import Record
from tests.data import trees


@pytest.mark.parametrize("name", trees.TREES)
def test_another_archive_or_one_still_packed_is_refused_with_what_was_expected(name: str, tmp_path: Path) -> None:
    other = "lgg_mri" if name != "lgg_mri" else "sars_cov2_ct"
    root = trees.make(other, tmp_path / "manual")
    with pytest.raises(UserError, match="does not exist|has no folders") as caught:
        prepare(name, root, tmp_path / "data")
    assert load_builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS in str(caught.value)
    (tmp_path / "ChestXRay2017.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"unpack ChestXRay2017\.zip in"):
        prepare("chest_xray_pneumonia", tmp_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_every_problem_is_in_one_message_and_nothing_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root, data = trees.make("covid_ct", tmp_path / "manual"), tmp_path / "data"
    images = root / "Images-processed"
    (images / "CT_NonCOVID" / "1.jpg").write_bytes(b"no image")
    (images / "CT_NonCOVID" / "3.jpg").write_bytes((images / "CT_NonCOVID" / "3.jpg").read_bytes()[:300])
    (images / "CT_COVID" / "2020.03.01.20029590-p15-109%0.png").write_bytes(b"")
    (images / "CT_COVID" / "2020.03.01.20029594-p15-109%4.png").unlink()
    (root / "Data-split" / "NonCOVID" / "valCT_NonCOVID.txt").unlink()
    with (root / "Data-split" / "COVID" / "testCT_COVID.txt").open("a") as file:
        file.write("nowhere.png\n2020.03.01.20029591-p15-109%1.png\n")
    (root / "NonCOVID-CT-MetaInfo.csv").write_text("a,b\n1,2\n")
    (root / "COVID-CT-MetaInfo.xlsx").write_bytes(b"no zip")
    data.mkdir()
    before = contents(tmp_path)
    arguments = ("--dataset=covid_ct", f"--manual_dir={root}", f"--data_dir={data}")
    with mock.patch("tests.commands.SPLITS", ("train", "val", "test", "covid_ct")):  # lines of progress
        message = refusal(capfd, command.main, *arguments)
    for part in (
        "covid_ct: 9 problems, nothing was written",
        "CT_NonCOVID/1.jpg (not a JPEG, PNG, BMP, TIFF or DICOM image)",
        "CT_NonCOVID/3.jpg (",
        "20029590-p15-109%0.png (the file is empty)",
        "trainCT_COVID.txt names 2020.03.01.20029594-p15-109%4.png",
        "valCT_NonCOVID.txt does not exist",
        "testCT_COVID.txt names nowhere.png",
        "CT_COVID/2020.03.01.20029591-p15-109%1.png is there more than once",
        "NonCOVID-CT-MetaInfo.csv has no columns for file and patient, but a, b",
        "COVID-CT-MetaInfo.xlsx cannot be read",
    ):
        assert part in message
    assert contents(tmp_path) == before


def spoil_masks(root: Path) -> None:
    folder = root / "kaggle_3m" / "TCGA_CS_490_19970222"
    (folder / "TCGA_CS_490_19970222_1_mask.tif").unlink()
    (folder / "TCGA_CS_490_19970222_2.tif").unlink()
    Image.new("L", (9, 9)).save(folder / "TCGA_CS_490_19970222_10_mask.tif")
    Image.new("L", (20, 16), 9).save(folder.with_name("TCGA_DU_491_19970222") / "TCGA_DU_491_19970222_1_mask.tif")


def spoil_volumes(root: Path) -> None:
    (root / "rp_im" / "1.nii.gz").write_bytes(b"no volume")
    (root / "rp_msk" / "2.nii.gz").unlink()
    shutil.copy(root / "rp_msk" / "4.nii.gz", root / "rp_msk" / "3.nii.gz")
    truncated = gzip.decompress((root / "rp_im" / "5.nii.gz").read_bytes())[:2000]
    (root / "rp_im" / "5.nii.gz").write_bytes(gzip.compress(truncated))


def spoil_table(root: Path) -> None:
    rows = [line.split(",") for line in (root / "images.csv").read_text().splitlines()]
    (root / "images" / "3.png").unlink()
    rows[2][1] = ""
    splits = ["split", "train", "test", "dev", *[""] * 17]
    (root / "images.csv").write_text("".join(f"{','.join(row)},{own}\n" for row, own in zip(rows, splits, strict=True)))


def spoil_lists(root: Path) -> None:
    (root / "Figure1-COVID-chestxray-dataset" / "images" / "COVID-00001.jpg").unlink()
    (root / "covid-chestxray-dataset" / "images" / "covid-19-0.jpg").unlink()


SPOILT: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "lgg_mri": (spoil_masks, (
        "4 problems", "19970222_1.tif has no mask", "19970222_2_mask.tif has no image",
        "9 x 9 pixels, but the image has 20 x 16", "class ids 9 are out of range",
    )),
    "covid_ct_seg/volumes": (spoil_volumes, (
        "1.nii.gz is no NIfTI file", "2.nii.gz does not exist", "they must be equal", "5.nii.gz is damaged",
    )),
    "csv/labels": (spoil_table, (
        "line 3: there is no label", "line 4: split is 'dev'", "line 5: images/3.png is not", "rows without",
    )),
    "covidx/plus": (spoil_lists, (
        "2 images of train_COVIDx2.txt are in none of the collections: covid-19-0.jpg, COVID-00001.jpg",
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_problems_of_a_kind_of_set_are_listed_together(name: str, tmp_path: Path) -> None:
    root, (spoil, parts) = trees.make(name, tmp_path / "manual"), SPOILT[name]
    spoil(root)
    message = user_error(prepare, name, root, tmp_path / "data")
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(28, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_broken_off_preparation_leaves_nothing(error: BaseException, told: type, tmp_path: Path) -> None:
    root = trees.make("sars_cov2_ct", tmp_path / "manual")
    real, calls = Record.encoded, iter(range(1000))

    def fails_while_writing(self: Record, num_mask_classes: int) -> tuple[bytes, bytes, tuple[str, ...]]:
        if next(calls) == 20 + 8:  # each of the 20 is opened once before
            raise error
        return real(self, num_mask_classes)

    with mock.patch.object(Record, "encoded", fails_while_writing), pytest.raises(told):
        prepare("sars_cov2_ct", root, tmp_path / "deep" / "data")
    assert not (tmp_path / "deep").exists()
    assert prepare("sars_cov2_ct", root, tmp_path / "deep" / "data").exists()


def test_what_a_killed_process_left_goes_and_a_set_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    left = tmp_path / "data" / "sars_cov2_ct" / ".1.0.0.999999999.tmp" / "half"  # by a process that was killed
    left.mkdir(parents=True)
    root = trees.make("sars_cov2_ct", tmp_path / "manual")
    arguments = ("--dataset=sars_cov2_ct", f"--manual_dir={root}", f"--data_dir={tmp_path / 'data'}")
    assert call(command.main, *arguments) == 0
    assert not left.parent.exists()
    before = contents(tmp_path / "data")
    shutil.rmtree(tmp_path / "manual" / "COVID")
    assert call(command.main, *arguments) == 0
    assert contents(tmp_path / "data") == before
    assert "is there already" in capfd.readouterr().err
