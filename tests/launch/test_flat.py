"""A flat folder of classes from the command line: trained on, evaluated, predicted; its split stays in the workdir."""

import shutil
from pathlib import Path

import pytest

from covidjax import files
from launch import evaluate, predict, train
from tests.commands import CLASSES, call, images_of, read_table, refusal, tiny_config, write_image

NUMBERS = range(20)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and the workdir of a run on it."""
    folder = tmp_path_factory.mktemp("flat")
    for label, name in enumerate(CLASSES):
        for number in NUMBERS:
            write_image(folder / "images" / name / f"{number:02}.png", 2 * number + label)
    arguments = [tiny_config(folder), *images_of(folder / "images"), f"--workdir={folder / 'run'}"]
    assert call(train.main, *arguments) == 0
    return folder / "images", folder / "run"


def test_a_run_keeps_the_split_that_it_drew_and_later_images_change_no_figure(
    capfd: pytest.CaptureFixture[str], flat: tuple[Path, Path], tmp_path: Path
) -> None:
    root, run = shutil.copytree(flat[0], tmp_path / "images"), shutil.copytree(flat[1], tmp_path / "run")
    rows = read_table(run / "splits.csv")
    assert [(row["label"], row["file"]) for row in rows] == [
        (name, f"{number:02}.png") for name in CLASSES for number in NUMBERS
    ]
    held = {split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")}
    assert held == {"train": 28, "val": 4, "test": 8}
    for number in range(25):
        write_image(root / CLASSES[1] / f"0{number}new.png", 100 + number)
    again = [tiny_config(tmp_path), *images_of(root), f"--workdir={run}"]
    assert call(evaluate.main, f"--workdir={flat[1]}", "--split=test") == 0
    kept = files.read_json(run / "config.json")
    files.write_json(run / "config.json", kept | {"dataset": kept["dataset"] | {"root": str(root)}})
    assert call(evaluate.main, f"--workdir={run}", "--split=test") == 0
    assert "25 images are new since the split was drawn, and are not used: " in capfd.readouterr().out
    first, second = (files.read_json(each / "evaluation_test.json") for each in (flat[1], run))
    assert (first["loss"], first["num_examples"]) == (second["loss"], 8)
    assert call(train.main, *again) == 0
    assert read_table(run / "splits.csv") == rows
    assert call(predict.main, f"--workdir={run}", f"--images={root}", f"--output={tmp_path / 'p.csv'}") == 0
    assert len(read_table(tmp_path / "p.csv")) == 65


def test_a_start_that_fails_keeps_no_split(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in CLASSES:
        for number in NUMBERS:
            write_image(root / name / f"{number:02}.png", number)
    (root / CLASSES[0] / "bad.png").write_bytes(b"bad")
    arguments = [tiny_config(tmp_path), *images_of(root), f"--workdir={tmp_path / 'run'}"]
    bad = refusal(capfd, train.main, *arguments, "--config.dataset.split_seed=1")
    assert "bad.png" in bad
    assert not (tmp_path / "run" / "splits.csv").exists()


def test_a_run_whose_split_is_lost_is_not_evaluated_on_another(
    capfd: pytest.CaptureFixture[str], flat: tuple[Path, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(flat[1], tmp_path / "run")
    (run / "splits.csv").unlink()
    message = refusal(capfd, evaluate.main, f"--workdir={run}", "--split=test")
    assert message.startswith(
        f"{run / 'splits.csv'}, which holds the split that this run drew, is missing: put it back"
    )
