"""Networks that answer with masks go through the same commands as classifiers: train, resume, evaluate, find_lr."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from covidjax import config as configs
from covidjax import files
from covidjax.data import sources
from covidjax.data.examples import Examples
from covidjax.train.writer import read_records
from covidjax.trained import load_trained
from launch import evaluate, find_lr, sweep, train
from tests.commands import ROOT, call, compiled_once, contents, refusal

CLASSES = ("background", "lung", "lesion")
NUM_TRAIN, NUM_TEST, STEPS_PER_EPOCH = 28, 7, 7
CONFIG = """
from covidjax.config import default_config

def get_config():
    config = default_config()
    config.dataset.image_size = 16
    config.dataset.num_images = 28
    config.model.name = "unet"
    config.model.width = 2
    config.batch_size = 4
    config.epochs = 2
    config.loss.name = "cross_entropy_dice"
    config.loss.class_weights = "balanced"
    config.optimizer.learning_rate = 1e-2
    config.checkpoint.best = "dice"
    return config
"""


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with compiled_once(tmp_path_factory) as variables:
        yield variables


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "masks.py"
    path.write_text(CONFIG)
    return f"--config={path}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """The workdir of a finished run whose test split was evaluated, which no test may change."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert call(train.main, config, "--config.augment.rotate=10", f"--workdir={workdir}") == 0
    assert call(evaluate.main, f"--workdir={workdir}", "--split=test") == 0
    return workdir


def split_of(workdir: Path, split: str) -> Examples:
    dataset = configs.from_json(files.read_json(workdir / "config.json")).dataset
    return sources.load(dataset, split, "segmentation")


def saved_masks(workdir: Path, examples: Examples) -> np.ndarray:
    paths = [workdir / f"masks_{examples.split}" / f"{Path(name).stem}.png" for name in examples.names]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def overlaps(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of each image and each class but the background, by counting pixels."""
    dice, iou = np.ones((2, len(true), len(CLASSES) - 1))
    for index, (guess, mask) in enumerate(zip(predicted, true, strict=True)):
        for c in range(1, len(CLASSES)):
            both, either = np.sum((guess == c) & (mask == c)), np.sum((guess == c) | (mask == c))
            if either:
                dice[index, c - 1], iou[index, c - 1] = 2 * both / (both + either), both / either
    return dice, iou


@pytest.mark.parametrize("split", ["val", "test"])
def test_dice_and_iou_are_those_of_the_saved_masks(trained: Path, split: str) -> None:
    examples, result = split_of(trained, split), files.read_json(trained / f"evaluation_{split}.json")
    assert examples.masks is not None
    dice, iou = overlaps(saved_masks(trained, examples), examples.masks)
    assert result["num_examples"] == len(examples) == NUM_TEST
    assert result["classes"] == list(CLASSES)
    assert result["dice"] == pytest.approx(dice.mean(), rel=1e-12)
    assert result["iou"] == pytest.approx(iou.mean(), rel=1e-12)
    for c, name in enumerate(CLASSES[1:]):
        assert result["per_class"][name]["dice"] == pytest.approx(dice[:, c].mean(), rel=1e-12)
        assert result["per_class"][name]["iou"] == pytest.approx(iou[:, c].mean(), rel=1e-12)
        low, high = result["per_class"][name]["iou_ci95"]
        assert low <= result["per_class"][name]["iou"] <= high
    with (trained / f"predictions_{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == list(examples.names)
    np.testing.assert_allclose([[float(row[f"dice_{name}"]) for name in CLASSES[1:]] for row in rows], dice)


def test_metrics_and_records_tell_of_masks(trained: Path) -> None:
    lines = [line for line in read_records(trained / "metrics.jsonl") if line["split"] == "val"]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(0 <= line["iou"] <= line["dice"] <= 1 and 0 < line["accuracy"] <= 1 for line in lines)
    best = max(lines, key=lambda line: (line["dice"], line["step"]))
    evaluation = files.read_json(trained / "evaluation_val.json")
    assert evaluation["checkpoint"] == {"step": best["step"], "which": "best"}
    assert evaluation["dice"] == pytest.approx(best["dice"], rel=1e-9)
    assert evaluation["loss"] == pytest.approx(best["loss"], rel=1e-6)
    data, masks = files.read_json(trained / "run.json")["data"], split_of(trained, "train").masks
    assert masks is not None
    assert data["train"]["classes"] == dict(zip(CLASSES, np.bincount(masks.ravel()).tolist(), strict=True))
    assert data["train"]["bytes"] == 2 * masks.nbytes
    assert (trained / "report.html").exists()


def without_times(workdir: Path) -> list[dict[str, Any]]:
    lines = read_records(workdir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def test_run_that_lost_its_last_checkpoint_goes_on_to_the_same_bits(tmp_path: Path, config: str, trained: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(2 * STEPS_PER_EPOCH))
    (workdir / "checkpoints" / "manifests" / f"{2 * STEPS_PER_EPOCH}.json").unlink()
    for path in (workdir / "masks_val").iterdir():
        path.unlink()
    assert call(train.main, config, "--config.augment.rotate=10", f"--workdir={workdir}") == 0
    assert without_times(workdir) == without_times(trained)
    jax.tree.map(
        np.testing.assert_array_equal, *(load_trained(each, "latest").variables for each in (workdir, trained))
    )
    for name in ("evaluation_val.json", "predictions_val.csv"):
        assert (workdir / name).read_bytes() == (trained / name).read_bytes()
    assert contents(workdir / "masks_val") == contents(trained / "masks_val")


def test_evaluation_on_three_devices_is_the_same(tmp_path: Path, environment: dict[str, str], trained: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "masks_test")
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    command = [sys.executable, "launch/evaluate.py", f"--workdir={workdir}", "--split=test"]
    subprocess.run(command, cwd=ROOT, env=environment | flags, check=True, capture_output=True)
    found, before = (files.read_json(each / "evaluation_test.json") for each in (workdir, trained))
    assert found.pop("loss") == pytest.approx(before.pop("loss"), rel=1e-5)
    assert found == before
    assert contents(workdir / "masks_test") == contents(trained / "masks_test")


@pytest.fixture
def double() -> Iterator[None]:
    """Runs in float64 set this for the whole process."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("freeze", [pytest.param("until:middle", marks=pytest.mark.slow), "until:up3"])
def test_run_from_cached_skips_is_the_one_through_the_network(tmp_path: Path, config: str, freeze: str) -> None:
    frozen = [f"--config.freeze={freeze}", "--config.precision=float64", "--config.epochs=3"]
    frozen.append("--config.checkpoint.keep=3")
    for features in ("on", "off"):
        flags = [*frozen, f"--config.features={features}", f"--config.dataset.cache_dir={tmp_path / 'cache'}"]
        assert call(train.main, config, *flags, f"--workdir={tmp_path / features}") == 0
    cached, through = (files.read_json(tmp_path / name / "run.json") for name in ("on", "off"))
    assert (cached["features"]["computed"], through["features"]["computed"]) == (2, 0)
    found, expected = (load_trained(tmp_path / name, "latest") for name in ("on", "off"))
    assert found.step == expected.step == 3 * STEPS_PER_EPOCH
    stages = found.model.stages
    trained_stages = stages[stages.index(freeze.removeprefix("until:")) + 1 :]
    begun = dict(jax.tree.leaves_with_path(load_trained(tmp_path / "off", STEPS_PER_EPOCH).variables))
    leaves = dict(jax.tree.leaves_with_path(found.variables))
    for path, value in jax.tree.leaves_with_path(expected.variables):
        assert value.dtype == np.float64
        bound = 1e-8 * np.abs(value).max()
        np.testing.assert_allclose(leaves[path], value, rtol=1e-8, atol=bound, err_msg=str(path))
        assert (not np.array_equal(value, begun[path])) == (path[1].key in trained_stages), path
    for one, other in zip(*(without_times(tmp_path / name) for name in ("on", "off")), strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=1e-6)
    assert contents(tmp_path / "on" / "masks_val") == contents(tmp_path / "off" / "masks_val")


def test_learning_rates_are_swept_for_masks(tmp_path: Path, config: str) -> None:
    workdir = tmp_path / "sweep"
    sweep_flags = ["--steps=20", "--start=1e-5", "--end=1e-2", "--config.freeze=until:up3", f"--workdir={workdir}"]
    assert call(find_lr.main, config, *sweep_flags) == 0
    found = json.loads((workdir / "lr_finder.json").read_text())
    assert len(found["losses"]) == found["steps"] == 20
    assert np.isfinite(found["losses"]).all()
    assert (workdir / "lr_finder.png").read_bytes().startswith(b"\x89PNG")


def write_pairs(root: Path) -> Path:
    """Eight images with masks for training and four for validation, all sound."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for number in range(count):
            for folder, most in (("images", 256), ("masks", 2)):
                path = root / split / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, most, (20, 20), np.uint8)).save(path)
    return root


def test_all_that_is_wrong_with_masks_is_told_in_one_message_before_training(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, config: str
) -> None:
    root = write_pairs(tmp_path / "root")
    masks = root / "train" / "masks"
    (masks / "1.png").unlink()
    Image.new("L", (20, 19)).save(masks / "2.png")
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(masks / "3.png")
    lossy = np.asarray(Image.open(masks / "4.png")) * 255
    (masks / "4.png").unlink()
    Image.fromarray(lossy).save(masks / "4.jpg", quality=30)
    (root / "val" / "masks" / "0.png").write_bytes(b"no image")
    flags = ["--config.dataset.name=folder", f"--config.dataset.root={root}", f"--workdir={tmp_path / 'run'}"]
    message = refusal(capfd, train.main, config, *flags)
    for part in (
        "4 of 8 train files are bad",
        f"{root}/train/images/1.png (",
        f"{root}/train/images/2.png (its mask",
        "20 x 19 pixels, but the image has 20 x 20",
        f"{root}/train/images/3.png (",
        f"{root}/train/images/4.png (",
        "1 of 4 val files are bad",
        f"{root}/val/images/0.png (",
    ):
        assert part in message
    assert contents(tmp_path / "run") == {}


def test_classifiers_and_sweeps_of_heads_refuse_what_is_for_masks(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, config: str
) -> None:
    message = refusal(capfd, train.main, config, "--config.model.name=cnn", f"--workdir={tmp_path / 'run'}")
    assert "config.checkpoint.best is 'dice', a figure of masks, and config.model.name is 'cnn'" in message
    message = refusal(capfd, sweep.main, config, "--config.freeze=until:middle", f"--workdir={tmp_path / 'sweep'}")
    assert message == "a sweep is of networks that label whole images, and unet answers with masks"
