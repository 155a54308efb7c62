"""Prediction of new images from the shell, with runs that trained for one epoch."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidjax import files
from launch import predict, train
from tests.commands import TINY_CONFIG, call, compiled_once, contents, refusal, tiny_config, write_image

MASKS_CONFIG = TINY_CONFIG.replace("model.num_blocks = 2", 'model.name = "unet"').replace(
    "return", 'config.loss.name = "cross_entropy_dice"\n    return'
)
IMAGES = ("a.png", "b.png", "more/c.png")
USE = "Research use only - not for clinical decisions."


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with compiled_once(tmp_path_factory) as variables:
        yield variables


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    assert call(train.main, tiny_config(folder), f"--workdir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    (folder / "masks.py").write_text(MASKS_CONFIG)
    assert call(train.main, f"--config={folder / 'masks.py'}", f"--workdir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(IMAGES):
        write_image(tmp_path / "images" / name, seed, size=20 + seed)
    return tmp_path / "images"


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classifier_writes_a_table_and_leaves_the_run_alone(
    capsys: pytest.CaptureFixture[str], classifier: Path, images: Path, tmp_path: Path
) -> None:
    before, output = contents(classifier), tmp_path / "predictions.csv"
    assert call(predict.main, f"--workdir={classifier}", f"--images={images}", f"--output={output}") == 0
    assert contents(classifier) == before
    rows, classes = read_table(output), list(files.read_json(classifier / "run.json")["data"]["train"]["classes"])
    assert [row["file"] for row in rows] == list(IMAGES)
    for row in rows:
        probabilities = [float(row[f"probability_{name}"]) for name in classes]
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        assert row["predicted"] == classes[int(np.argmax(probabilities))]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 images; checkpoint of step 6"
    assert said[-2:] == [f"table: {output}", USE]


def test_network_of_masks_writes_them_with_overlays(
    capsys: pytest.CaptureFixture[str], unet: Path, images: Path, tmp_path: Path
) -> None:
    output, overlays = tmp_path / "p.csv", tmp_path / "over"
    flags = [f"--workdir={unet}", f"--images={images}", f"--output={output}", f"--overlays={overlays}"]
    assert call(predict.main, *flags) == 0
    for row, side in zip(read_table(output), (20, 21, 22), strict=True):
        assert Image.open(tmp_path / row["mask"]).size == (side, side)
    assert contents(overlays).keys() == contents(tmp_path / "p_masks").keys() == {"a.png", "b.png", "c.png"}
    said = capsys.readouterr().out.splitlines()
    assert "what lies outside the centre square was not seen, and is background in the masks" in said
    assert said[-4:] == [f"table: {output}", f"masks: {tmp_path / 'p_masks'}", f"overlays: {overlays}", USE]
    before = contents(tmp_path)
    assert call(predict.main, *flags) == 2
    assert contents(tmp_path) == before


def test_large_images_are_predicted_in_tiles_at_their_own_size(
    capsys: pytest.CaptureFixture[str], unet: Path, tmp_path: Path
) -> None:
    write_image(tmp_path / "large.png", seed=0, size=70)
    output = tmp_path / "p.csv"
    flags = [f"--workdir={unet}", f"--images={tmp_path / 'large.png'}", f"--output={output}", "--tile=64"]
    assert call(predict.main, *flags) == 0
    assert Image.open(tmp_path / "p_masks" / "large.png").size == (70, 70)
    assert "taken at their own size: the network learnt from images brought to 16 pixels" in capsys.readouterr().out


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
    classifier: Path,
    images: Path,
    tmp_path: Path,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    flags = [f"--workdir={classifier}", f"--images={images}", *arguments]
    assert expected in refusal(capfd, predict.main, *flags)
    assert contents(tmp_path) == before


def test_bad_images_are_one_line_and_write_nothing(
    capfd: pytest.CaptureFixture[str], classifier: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("0.jpg", "z.png"):
        (images / name).write_text("no image")
    before = contents(tmp_path)
    message = refusal(
        capfd, predict.main, f"--workdir={classifier}", f"--images={images}", f"--output={tmp_path / 'p.csv'}"
    )
    assert message.startswith("2 of 5 images are bad: ")
    assert contents(tmp_path) == before
