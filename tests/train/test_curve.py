"""Loss and rate along the steps of a run: steps.jsonl, and the curves of the report."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.files import read_json_lines
from covidjax.report import workdir as workdirs
from covidjax.runs.train import train
from covidjax.train.curve import POINTS, StepCurve
from covidjax.train.setup import prepare
from covidjax.train.state import StepMetrics
from tests.support import TINY, small_config

EPOCH_STEPS = 6


@pytest.mark.parametrize("steps_per_call", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_phase_of_one_epoch_has_the_loss_and_the_rate_of_each_call(tmp_path: Path, steps_per_call: int) -> None:
    config = small_config(
        **TINY,
        dataset__cache_dir=str(tmp_path / "cache"),
        optimizer__schedule="fastai_one_cycle",
        optimizer__name="adamw",
        phases=({"epochs": 1}, {"epochs": 2, "optimizer": {"learning_rate": 1e-4}}),
        steps_per_call=steps_per_call,
    )
    workdir = train(config, tmp_path / "run").parent
    lines, metrics = (read_json_lines(workdir / name)[0] for name in ("steps.jsonl", "metrics.jsonl"))
    within = range(1, EPOCH_STEPS + 1) if steps_per_call == 1 else (4, 6)
    ends = [epoch * EPOCH_STEPS + step for epoch in range(3) for step in within]
    assert [line["step"] for line in lines] == ends
    assert [line["epoch"] for line in lines] == [step / EPOCH_STEPS for step in ends]
    assert [line["phase"] for line in lines] == [int(step > EPOCH_STEPS) for step in ends]
    job = prepare(config)
    for line in lines:
        recipe = job.recipes[line["phase"]]
        rate = recipe.learning_rate(line["step"] - 1 - recipe.schedule_start)
        assert line["learning_rate"] == pytest.approx(float(rate), rel=1e-6)
    counts = np.diff([0, *within])
    for epoch, whole in enumerate(line["loss"] for line in metrics if line["split"] == "train"):
        losses = [line["loss"] for line in lines[epoch * len(counts) : (epoch + 1) * len(counts)]]
        assert np.average(losses, weights=counts) == pytest.approx(whole, rel=1e-5)
        assert len(set(losses)) == len(losses)
    epochs, _ = workdirs.along_steps(workdirs.read(workdir), "loss")
    assert epochs == [line["epoch"] for line in lines]
    epochs, rates = workdirs.along_steps(workdirs.read(workdir), "learning_rate", most=len(lines) // 2)
    assert len(epochs) <= len(lines) // 2 + 1 and 1.0 in epochs  # no mean is over two phases
    assert rates[0] == pytest.approx(np.mean([line["learning_rate"] for line in lines[:2]]))


def test_a_long_epoch_has_a_hundred_points_that_are_means_and_a_skipped_step_counts_in_none() -> None:
    epoch_steps, stride = 1000, 1000 // POINTS
    curve, sums = StepCurve(epoch_steps), StepMetrics.empty()
    curve.begin(0, sums)
    recipe: Any = SimpleNamespace(learning_rate=lambda step: 0.1, schedule_start=0)
    state: Any = SimpleNamespace(plateau=SimpleNamespace(scale=0.5))
    for step in range(1, epoch_steps + 1):
        if step != 3:  # which loss scaling has skipped
            sums = sums.add(jnp.int32(step), jnp.float32(step), jnp.float32(0), jnp.float32(0), 1)
        curve.add(step, sums)
    records = curve.records(0, recipe, state)
    assert [record["step"] for record in records] == list(range(stride, epoch_steps + 1, stride))
    assert records[0]["loss"] == pytest.approx((55 - 3) / 9)
    assert records[-1]["loss"] == pytest.approx(995.5)
    assert {record["learning_rate"] for record in records} == {0.05}
