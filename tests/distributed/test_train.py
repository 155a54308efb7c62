"""Several processes train as one does: the same losses, the same figures, the files written once."""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import assert_same_losses, train_alone, train_together


def test_two_processes_train_as_one(tmp_path: Path, config: str) -> None:
    """Streamed, so that each reads its own rows; 12 validation images in batches of 8, which do not divide."""
    flags = [config, "--config.precision=float64", "--config.batch_size=8", "--config.evaluate_every_steps=1"]
    flags += ["--config.dataset.placement=stream", "--config.epochs=2"]
    together = train_together(2, 1, *flags, f"--workdir={tmp_path / 'two'}")
    assert together.returncode == 0, together.stderr
    alone = train_alone(1, *flags, f"--workdir={tmp_path / 'one'}")
    assert alone.returncode == 0, alone.stderr
    assert_same_losses(tmp_path / "two", tmp_path / "one", steps=6)
    found, expected = (json.loads((tmp_path / run / "evaluation_val.json").read_text()) for run in ("two", "one"))
    assert found["num_examples"] == expected["num_examples"]
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-8)
    assert together.stdout.count("report: ") == 1
    assert "[1]" not in together.stdout.replace("[1] [Gloo]", "")
