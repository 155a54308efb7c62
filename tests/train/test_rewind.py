"""A run whose loss is not finite goes back to a checkpoint: always to the same one, and not for ever."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from covidjax import optim
from covidjax.errors import Interrupted
from covidjax.files import read_json_lines
from covidjax.runs import train
from covidjax.train import rewind
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.weights.workdir import open_checkpoints
from tests.commands import user_error
from tests.support import TINY, send_before, small_config
from tests.train.test_resume import assert_same_run, differing

STEPS_PER_EPOCH, WILD = 6, 14  # the step, from 0, that spoils the parameters: the loss of the next one shows it
CONFIG = small_config("cnn", **TINY, epochs=4, nonfinite="rewind", ema_decay=0.9, checkpoint__keep=9, steps_per_call=2)


def wild_rate(monkeypatch: pytest.MonkeyPatch, wild: Callable[[Any], Any]) -> None:
    """The learning rate is not a number in the steps that a function picks."""
    schedule = optim.learning_rate_schedule

    def changed(*arguments: Any) -> Callable[[Any], Any]:
        rate = schedule(*arguments)
        return lambda step: jnp.where(wild(jnp.asarray(step)), jnp.nan, rate(step))

    monkeypatch.setattr(optim, "learning_rate_schedule", changed)


def test_a_run_goes_on_from_the_last_epoch_behind_the_bad_step_and_to_the_same_bits_when_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild_rate(monkeypatch, lambda step: step == WILD)
    whole, programs = tmp_path / "whole", Programs()
    train.train(CONFIG, whole, programs=programs)
    job, behind = prepare(CONFIG), WILD + 2
    with open_checkpoints(whole, CONFIG) as checkpoints:
        assert checkpoints.steps() == [6, 12, behind, 18, 24]
        end, after = (checkpoints.restore(step, job.abstract_state(step)) for step in (12, behind))
        assert after.progress["rewound"] == [[12, behind]]
        assert differing(after.state, end.state) == [".step"]
    assert f"back to what the network was at step 12, and steps 13 to {behind}" in (whole / "run.json").read_text()
    (row,) = [
        row for row in read_json_lines(whole / "metrics.jsonl")[0] if row["split"] == "train" and row["step"] == 18
    ]
    assert row["loss"] > 0

    stopped = tmp_path / "stopped"
    for step in (13, 18):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            send_before(step, patch)
            train.train(CONFIG, stopped, programs=programs)
    train.train(CONFIG, stopped, programs=programs)
    assert_same_run(stopped, whole, job)

    shutil.rmtree(whole)
    wild_rate(monkeypatch, lambda step: step >= WILD)
    message = user_error(train.train, CONFIG, whole)
    assert f"has gone back {rewind.MOST} times already" in message
    assert user_error(train.train, CONFIG, whole) == message
