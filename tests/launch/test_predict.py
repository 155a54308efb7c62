"""Prediction of new images from the shell, with a classifier that trained for one epoch.

That of masks: test_commands_segmentation.py.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from covidjax import files
from launch import predict
from tests.commands import call, contents, refusal, write_image

IMAGES = ("a.png", "b.png", "more/c.png")
USE = "Research use only - not for clinical decisions."


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(IMAGES):
        write_image(tmp_path / "images" / name, seed, size=20 + seed)
    return tmp_path / "images"


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classifier_writes_a_table_and_leaves_the_run_alone(
    capsys: pytest.CaptureFixture[str], trained: Path, images: Path, tmp_path: Path
) -> None:
    before, output = contents(trained), tmp_path / "predictions.csv"
    assert call(predict.main, f"--workdir={trained}", f"--images={images}", f"--output={output}") == 0
    assert contents(trained) == before
    rows, classes = read_table(output), list(files.read_json(trained / "run.json")["data"]["train"]["classes"])
    assert [row["file"] for row in rows] == list(IMAGES)
    for row in rows:
        probabilities = [float(row[f"probability_{name}"]) for name in classes]
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        assert row["predicted"] == classes[int(np.argmax(probabilities))]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 images; checkpoint of step 6"
    assert said[-2:] == [f"table: {output}", USE]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--output=p.csv", "--checkpoint=newest"], "'newest' is none of best, latest and the number of a step"),
        (["--output=p.csv", "--checkpoint=17"], "there is no checkpoint 17"),
        (["--output=p.csv", "--tile=50"], "the tile is 50 pixels: allowed are multiples of 32"),
        (["--output=p.csv", "--spacing=5;1"], "is not of the form 5,0.7,0.7"),
        (["--output=p.csv", "--overlap=8"], "--overlap is that of tiles: give --tile as well"),
        (["--output=p.csv", "--tile=64"], "cnn labels whole images: --overlays, --tile and --spacing are for masks"),
        (["--output=folder"], "--output is folder: name the table that is to be written, such as predictions.csv"),
        ([], "the following arguments are required: --output"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    trained: Path,
    images: Path,
    tmp_path: Path,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    flags = [f"--workdir={trained}", f"--images={images}", *arguments]
    assert expected in refusal(capfd, predict.main, *flags)
    assert contents(tmp_path) == before
