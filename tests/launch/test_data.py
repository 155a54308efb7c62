"""Folders of images as people have them: what is wrong is told in one line, what can be read is read."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from covidjax import files
from launch import evaluate, predict, train
from tests.commands import (
    CLASSES,
    IMAGES_PER_CLASS,
    SPLITS,
    call,
    contents,
    images_of,
    refusal,
    write_image,
    write_images,
)
from tests.data.images import opened_below

NUM_TRAINING_IMAGES = IMAGES_PER_CLASS["train"] * len(CLASSES)
CORRUPTED = FIRST, SECOND, THIRD, FOURTH = "train/healthy/2.png", "train/ill/0.png", "train/ill/5.png", "val/ill/0.png"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set, which no test may change."""
    return write_images(tmp_path_factory.mktemp("images") / "root")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: str, images: Path) -> Path:
    """The workdir of a run on it, which no test may change either."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert call(train.main, config, *images_of(images), f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture
def copy(images: Path, tmp_path: Path) -> Path:
    """The same images, to be spoilt."""
    return shutil.copytree(images, tmp_path / "root")


def corrupt(root: Path) -> None:
    (root / FIRST).write_bytes((root / FIRST).read_bytes()[:100])
    (root / SECOND).write_bytes(b"")
    (root / THIRD).write_text("no image")
    (root / FOURTH).write_text("no image")


BAD = ("3 of 16 train files are bad", "1 of 6 val files are bad", *(f"{{root}}/{name}" for name in CORRUPTED))
SPOILT: list[tuple[Callable[[Path], object], tuple[str, ...]]] = [
    (
        shutil.rmtree,
        ("there is no folder {root}: a relative one", "expected layout: root/train|val|test/<class>/<image>"),
    ),
    (corrupt, BAD),
    (lambda root: write_image(root / SECOND, seed=999), ("the train images are not those that",)),
    (lambda root: write_image(root / FOURTH, seed=999), ("the val images are not those that",)),
]


@pytest.mark.parametrize(("spoil", "expected"), SPOILT)
def test_data_that_are_wrong_are_named_and_the_run_keeps_its_bytes(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, config: str, trained: Path, copy: Path,
    spoil: Callable[[Path], object], expected: tuple[str, ...],
) -> None:  # fmt: skip
    spoil(copy)
    before = contents(trained)
    message = refusal(capfd, train.main, config, *images_of(copy), f"--workdir={trained}")
    assert [part for part in expected if part.format(root=copy) not in message] == []
    assert contents(trained) == before
    if "are not those" not in message:
        assert refusal(capfd, train.main, config, *images_of(copy), f"--workdir={tmp_path / 'run'}") == message
        assert contents(tmp_path / "run") == {}


def test_bad_files_are_skipped_when_asked_and_recorded(tmp_path: Path, config: str, copy: Path) -> None:
    corrupt(copy)
    workdir = tmp_path / "run"
    skipping = "--config.dataset.skip_bad=true"
    assert call(train.main, config, *images_of(copy), skipping, f"--workdir={workdir}") == 0
    run = files.read_json(workdir / "run.json")
    assert run["data"]["train"]["num_examples"] == NUM_TRAINING_IMAGES - 3
    note = next(note for note in run["notes"] if "3 bad files were dropped" in note)
    assert all(name in note for name in (FIRST, SECOND, THIRD))
    assert run["data"]["val"]["num_examples"] == 5


def test_names_that_are_no_utf8_and_copies_reach_records_report_and_predictions(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, config: str, copy: Path
) -> None:
    for split in SPLITS:
        (copy / split / "ill").rename(copy / split / os.fsdecode(b"L\xe9sion"))
        folder = copy / split / "healthy"
        (folder / "1.png").rename(folder / os.fsdecode(b"r\xf6ntgen.png"))
    shutil.copy(folder / os.fsdecode(b"r\xf6ntgen.png"), copy / "train" / "healthy" / "copy.png")
    workdir, output = tmp_path / "run", tmp_path / "p.csv"
    assert call(train.main, config, *images_of(copy), f"--workdir={workdir}") == 0
    capfd.readouterr()
    assert call(evaluate.main, f"--workdir={workdir}", "--split=test") == 0
    told = "in two splits, byte for byte: test/healthy/r\\xf6ntgen.png (test) = train/healthy/copy.png (train)"
    assert told in capfd.readouterr().out
    assert call(predict.main, f"--workdir={workdir}", f"--images={copy / 'test'}", f"--output={output}") == 0
    for path in (output, workdir / "predictions_test.csv", workdir / "report.html"):
        text = path.read_text(encoding="utf-8")
        assert "L\\xe9sion" in text and "r\\xf6ntgen.png" in text
    assert any(told in note for note in files.read_json(workdir / "evaluation_test.json")["notes"])
    assert told in (workdir / "report.html").read_text(encoding="utf-8")


def test_training_opens_no_test_image_and_evaluation_of_test_does(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, config: str, copy: Path
) -> None:
    corrupt = [copy / "test" / name / "0.png" for name in CLASSES]
    for path in corrupt:
        path.write_bytes(b"no image")
    workdir = tmp_path / "run"
    with opened_below(copy) as opened:
        for _ in range(2):
            assert call(train.main, config, *images_of(copy), f"--workdir={workdir}") == 0
            assert {name.partition("/")[0] for name in opened} == {"train", "val"}
        message = refusal(capfd, evaluate.main, f"--workdir={workdir}", "--split=test")
        assert all(str(path) in message for path in corrupt)
        assert {str(path.relative_to(copy)) for path in corrupt} <= opened
    run = files.read_json(workdir / "run.json")
    assert len(run["test_reads"]) == 1
    assert "test" not in run["data"]
