"""Several processes train as one does: the same losses, the same figures, the files written once."""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import assert_same_losses, train_alone, train_together

CASES = {
    "resnet18": ["--config.model.name=resnet18", "--config.dataset.image_size=32", "--config.ema_decay=0.9"],
    "cached features": ["--config.freeze=backbone", "--config.features=on"],
    "masks": ["--config.model.name=unet", "--config.dataset.image_size=32", "--config.loss.name=cross_entropy_dice"],
    "streamed": ["--config.dataset.placement=stream", "--config.augment.rotate=10", "--config.accumulation_steps=2"],
    "fsdp": ["--config.mesh=(('data', -1), ('fsdp', 2))", "--config.ema_decay=0.9", "--config.optimizer.clip_norm=1"],
}
STEPS = 21  # seven epochs of three


def test_two_processes_train_as_one(tmp_path: Path, config: str) -> None:
    """Streamed, so that each reads its own rows; the validation images do not divide into the batches."""
    flags = [config, "--config.precision=float64", "--config.batch_size=8", "--config.evaluate_every_steps=1"]
    flags += ["--config.dataset.placement=stream"]
    together = train_together(2, 1, *flags, f"--workdir={tmp_path / 'two'}")
    assert together.returncode == 0, together.stderr
    alone = train_alone(1, *flags, f"--workdir={tmp_path / 'one'}")
    assert alone.returncode == 0, alone.stderr
    assert_same_losses(tmp_path / "two", tmp_path / "one", steps=3)
    assert_same_evaluation(tmp_path / "two", tmp_path / "one")
    assert together.stdout.count("report: ") == 1
    assert not [line for line in together.stdout.splitlines() if line.startswith("[1]") and "Gloo" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_processes_and_devices_agree_on_twenty_steps_in_float64(tmp_path: Path, config: str, case: str) -> None:
    flags = [config, "--config.precision=float64", "--config.batch_size=8", "--config.evaluate_every_steps=1"]
    flags += ["--config.epochs=7", *CASES[case]]
    runs = {"2x2": train_together(2, 2, *flags, f"--workdir={tmp_path / '2x2'}")}
    runs["1x4"] = train_alone(4, *flags, f"--workdir={tmp_path / '1x4'}")
    single = [flag for flag in flags if not flag.startswith("--config.mesh")]
    runs["1x1"] = train_alone(1, *single, f"--workdir={tmp_path / '1x1'}")
    for name, run in runs.items():
        assert run.returncode == 0, f"{name}: {run.stderr}"
    for name in ("1x4", "1x1"):
        assert_same_losses(tmp_path / "2x2", tmp_path / name, STEPS)
        assert_same_evaluation(tmp_path / "2x2", tmp_path / name)


@pytest.mark.slow
def test_a_run_saved_on_four_devices_goes_on_on_two_with_the_same_losses(tmp_path: Path, config: str) -> None:
    """The state in four parts, then in two, then whole; and the run on one device that was left alone."""
    flags = [config, "--config.precision=float64", "--config.batch_size=8", "--config.evaluate_every_steps=1"]
    flags += ["--config.ema_decay=0.9"]
    for devices, epochs in ((4, 2), (2, 5), (1, 7)):
        own = [f"--config.mesh=(('data', 1), ('fsdp', {devices}))", f"--config.epochs={epochs}"]
        run = train_alone(devices, *flags, *own, f"--workdir={tmp_path / 'run'}")
        assert run.returncode == 0, run.stderr
        assert ("resuming from step" in run.stdout) == (devices < 4)
    alone = train_alone(1, *flags, "--config.epochs=7", f"--workdir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    assert_same_losses(tmp_path / "run", tmp_path / "alone", STEPS)
    assert_same_evaluation(tmp_path / "run", tmp_path / "alone")


def assert_same_evaluation(workdir: Path, other: Path) -> None:
    """Of the same number of images, with the same loss."""
    found, expected = (json.loads((run / "evaluation_val.json").read_text()) for run in (workdir, other))
    rows = [len((run / "predictions_val.csv").read_text().splitlines()) for run in (workdir, other)]
    assert rows[0] == rows[1]
    assert found.get("num_examples") == expected.get("num_examples")
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-8)
