"""The loss and the rate of every step are told, or of some by a rule that does not ask how long the run is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidjax.files import read_json_lines
from covidjax.runs.train import train
from covidjax.train.series import StepSeries, is_told
from tests.support import TINY, small_config

EPOCH_STEPS = 6  # of 24 images in batches of 4


def test_each_of_the_first_thousand_steps_is_told_then_every_tenth_then_every_hundredth() -> None:
    told = [number for number in range(1, 100_001) if is_told(number)]
    assert told == [*range(1, 1001), *range(1010, 10_001, 10), *range(10_100, 100_001, 100)]


def test_steps_of_a_call_are_told_by_their_number_in_the_phase_and_once() -> None:
    series = StepSeries(index=1, first_step=500, epoch=lambda step: step / 100)
    series.add(1495, 8, {"loss": np.arange(10.0)})  # the last 5 of the first 1000, and 3 of those that come after
    series.add(1503, 1, {"loss": np.float32(7)})
    series.add(1509, 1, {"loss": np.float32(8)})
    rows = series.take()
    assert [(row["step"], row["loss"]) for row in rows] == [*zip(range(1496, 1501), range(5), strict=True), (1510, 8)]
    assert rows[0] == {"step": 1496, "epoch": 14.96, "phase": 1, "split": "step", "loss": 0.0}
    assert series.take() == []


@pytest.mark.parametrize(
    "changes", [{"dataset__placement": "stream"}, {"steps_per_call": 2, "evaluate_every_steps": 3}]
)
def test_rows_of_steps_are_what_the_epochs_are_the_means_of(changes: dict[str, Any], tmp_path: Path) -> None:
    plan: dict[str, Any] = {"optimizer__schedule": "cosine", "phases": ({"epochs": 1}, {"epochs": 2})}
    train(small_config("cnn", **TINY, **plan, **changes), tmp_path)
    lines = read_json_lines(tmp_path / "metrics.jsonl")[0]
    steps = [line for line in lines if line["split"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 3 * EPOCH_STEPS + 1))
    assert [line["phase"] for line in steps] == [0] * EPOCH_STEPS + [1] * 2 * EPOCH_STEPS
    for epoch in (line for line in lines if line["split"] == "train" and isinstance(line["epoch"], int)):
        own = [line for line in steps if epoch["step"] - EPOCH_STEPS < line["step"] <= epoch["step"]]
        assert np.mean([line["loss"] for line in own]) == pytest.approx(epoch["loss"], rel=1e-6)
        assert own[-1]["learning_rate"] == pytest.approx(epoch["learning_rate"], rel=1e-6)
        assert len({line["learning_rate"] for line in own}) == EPOCH_STEPS
