"""What is wrong with the files of a data set: all of it in one message, and nothing half-prepared left behind."""

import csv as tables
import gzip
import shutil
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from covidjax.errors import UserError
from launch import prepare as command
from tests.commands import contents, refusal

pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
pytest.importorskip("nibabel", reason="nibabel is not installed: make setup installs it")
from covidjax.data.datasets.prepare import load_builder, prepare
from covidjax.data.datasets.records import Record
from tests.data import trees


@pytest.mark.parametrize("name", trees.TREES)
def test_another_archive_is_refused_with_what_was_expected(name: str, tmp_path: Path) -> None:
    other = "lgg_mri" if name != "lgg_mri" else "sars_cov2_ct"
    root = trees.make(other, tmp_path / "manual")
    with pytest.raises(UserError) as caught:
        prepare(name, root, tmp_path / "data")
    assert load_builder(name).MANUAL_DOWNLOAD_INSTRUCTIONS in str(caught.value)
    assert "does not exist" in str(caught.value) or "has no folders" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_an_archive_that_is_still_packed_is_named(tmp_path: Path) -> None:
    (tmp_path / "ChestXRay2017.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"unpack ChestXRay2017\.zip in"):
        prepare("chest_xray_pneumonia", tmp_path, tmp_path / "data")


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
    message = refusal_of_prepare(capfd, *arguments)
    for part in (
        "covid_ct: 9 problems, nothing was written",
        "CT_NonCOVID/1.jpg (not a JPEG, PNG, BMP or TIFF image)",
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


def refusal_of_prepare(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error, after lines of progress."""
    with mock.patch("tests.commands.SPLITS", ("train", "val", "test", "covid_ct")):
        return refusal(capfd, command.main, *arguments)


def test_problems_of_masks_are_listed_together(tmp_path: Path) -> None:
    root = trees.make("lgg_mri", tmp_path / "manual") / "kaggle_3m"
    folder = root / "TCGA_CS_490_19970222"
    (folder / "TCGA_CS_490_19970222_1_mask.tif").unlink()
    (folder / "TCGA_CS_490_19970222_2.tif").unlink()
    Image.new("L", (9, 9)).save(folder / "TCGA_CS_490_19970222_10_mask.tif")
    Image.new("L", (20, 16), 9).save(root / "TCGA_DU_491_19970222" / "TCGA_DU_491_19970222_1_mask.tif")
    with pytest.raises(UserError) as caught:
        prepare("lgg_mri", root, tmp_path / "data")
    for part in (
        "4 problems",
        "19970222_1.tif has no mask",
        "19970222_2_mask.tif has no image",
        "9 x 9 pixels, but the image has 20 x 16",
        "class ids 9 are out of range",
    ):
        assert part in str(caught.value)


def test_problems_of_volumes_are_listed_together(tmp_path: Path) -> None:
    root = trees.make("covid_ct_seg/volumes", tmp_path / "manual")
    (root / "rp_im" / "1.nii.gz").write_bytes(b"no volume")
    (root / "rp_msk" / "2.nii.gz").unlink()
    shutil.copy(root / "rp_msk" / "4.nii.gz", root / "rp_msk" / "3.nii.gz")
    truncated = gzip.decompress((root / "rp_im" / "5.nii.gz").read_bytes())[:2000]
    (root / "rp_im" / "5.nii.gz").write_bytes(gzip.compress(truncated))
    with pytest.raises(UserError) as caught:
        prepare("covid_ct_seg/volumes", root, tmp_path / "data")
    for part in ("1.nii.gz is no NIfTI file", "2.nii.gz does not exist", "they must be equal", "5.nii.gz is damaged"):
        assert part in str(caught.value)


def test_problems_of_a_table_are_listed_by_line(tmp_path: Path) -> None:
    root = trees.make("csv/labels", tmp_path / "manual")
    with (root / "images.csv").open(newline="") as file:
        rows = list(tables.reader(file))
    (root / "images" / "3.png").unlink()
    rows[2][1] = ""
    rows = [[*row, split] for row, split in zip(rows, ["split", "train", "test", "dev", *[""] * 17], strict=True)]
    with (root / "images.csv").open("w", newline="") as file:
        tables.writer(file).writerows(rows)
    with pytest.raises(UserError) as caught:
        prepare("csv", root, tmp_path / "data")
    for part in ("line 3: there is no label", "line 4: split is 'dev'", "line 5: images/3.png is not", "rows without"):
        assert part in str(caught.value)


def test_absent_images_of_a_list_are_all_named(tmp_path: Path) -> None:
    root = trees.make("covidx/plus", tmp_path / "manual")
    (root / "Figure1-COVID-chestxray-dataset" / "images" / "COVID-00001.jpg").unlink()
    (root / "covid-chestxray-dataset" / "images" / "covid-19-0.jpg").unlink()
    with pytest.raises(
        UserError, match=r"2 images of train_COVIDx2\.txt are in none .*: covid-19-0\.jpg, COVID-00001\.jpg"
    ):
        prepare("covidx/plus", root, tmp_path / "data")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_broken_off_preparation_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    root = trees.make("sars_cov2_ct", tmp_path / "manual")
    real, calls = Record.encoded, iter(range(1000))

    def fails_while_writing(self: Record, num_mask_classes: int) -> tuple[bytes, bytes]:
        if next(calls) == 20 + 8:  # each of the 20 is opened once before
            raise error
        return real(self, num_mask_classes)

    with mock.patch.object(Record, "encoded", fails_while_writing), pytest.raises(type(error)):
        prepare("sars_cov2_ct", root, tmp_path / "deep" / "data")
    assert not (tmp_path / "deep").exists()
    assert prepare("sars_cov2_ct", root, tmp_path / "deep" / "data").exists()


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    root, left = trees.make("sars_cov2_ct", tmp_path / "manual"), tmp_path / "data" / ".sars_cov2_ct.preparing" / "half"
    left.mkdir(parents=True)
    prepare("sars_cov2_ct", root, tmp_path / "data")
    assert not left.parent.exists()


def test_a_prepared_set_is_left_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = prepare("sars_cov2_ct", trees.make("sars_cov2_ct", tmp_path / "manual"), tmp_path / "data")
    before = contents(tmp_path / "data")
    shutil.rmtree(tmp_path / "manual" / "COVID")
    assert prepare("sars_cov2_ct", tmp_path / "manual", tmp_path / "data") == folder
    assert contents(tmp_path / "data") == before
    assert "is there already" in capfd.readouterr().err
