"""A last phase that trains on the validation images too: nothing is chosen there, and nothing else changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files
from covidjax.errors import Interrupted
from covidjax.runs.train import train
from covidjax.train.features import PrefixFeatures, feature_store
from covidjax.train.inputs import make_inputs
from covidjax.train.phases import make_phases
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.weights.workdir import load_trained, open_checkpoints
from tests.commands import user_error
from tests.support import TINY, send_before, small_config
from tests.train.test_resume import differing, figures, restore

BOTH = {"epochs": 2, "split": "train+val"}


def config(**changes: Any) -> ConfigDict:
    settings: dict[str, Any] = {
        **TINY,
        "phases": ({"epochs": 1}, BOTH),
        "checkpoint__evaluate": "last",
        "nonfinite": "skip",
    }
    return small_config("cnn", **{**settings, **changes})


def test_its_epochs_are_longer_and_counted_on() -> None:
    phases = make_phases(config(phases=({"epochs": 2}, {**BOTH, "epochs": 1}, BOTH)), 10, with_val=13)
    assert [(phase.first_step, phase.last_step) for phase in phases] == [(0, 20), (20, 33), (33, 59)]
    assert [phase.epoch(phase.last_step) for phase in phases] == [2, 3, 5]
    assert [step for step in range(20, 60) if phases[2].ends_epoch(step)] == [20, 33, 46, 59]
    assert [phases[2].epoch_start(step) for step in (33, 45, 46)] == [33, 33, 46]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint__evaluate": "best"}, "cannot name the best checkpoint: set config.checkpoint.evaluate to 'last'"),
        ({"early_stopping__patience": 2}, "cannot stop the run early"),
        ({"phases": (BOTH, {"epochs": 1})}, "all phases behind it train on them too"),
        ({"phases": ({"split": "val"},)}, "split is 'val': allowed are train, train+val"),
    ],
)
def test_what_would_choose_by_images_that_were_trained_on_is_refused(changes: dict[str, Any], said: str) -> None:
    assert said in user_error(configs.validate, config(**changes))


def test_all_images_of_both_splits_are_trained_on_and_the_best_stays_that_of_before(tmp_path: Path) -> None:
    programs, settings = Programs(), config()
    job = prepare(settings)
    last, own = job.phases[1], job.examples[1]
    assert job.examples[0] is job.train_split and own.names == job.train_split.names + job.val_split.names
    features = PrefixFeatures(feature_store(str(tmp_path / "cache")), job.mesh, programs)
    inputs = make_inputs(job, last, job.variables, features)
    rows = np.concatenate([inputs.rows(step, 0, settings.batch_size) for step in range(last.epoch_steps)])
    assert len(set(rows)) == len(rows) == len(own) - len(own) % settings.batch_size
    np.testing.assert_array_equal(np.asarray(inputs.views[0]["image"]), own.images)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(settings, whole, programs=programs)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        send_before(last.epoch_steps + 2, patch)  # of the last phase, whose steps are counted anew
        train(settings, stopped, programs=programs)
    train(settings, stopped, programs=programs)
    assert differing(restore(whole, job).state, restore(stopped, job).state) == []
    assert [line["epoch"] for line in figures(whole) if line["split"] == "val"] == [1, 2, 3]
    assert [line["nonfinite_steps"] for line in figures(whole) if "nonfinite_steps" in line] == [0, 0, 0]
    with open_checkpoints(whole, settings) as checkpoints:
        assert checkpoints.best()[1] == job.steps_per_epoch  # type: ignore[index]
    assert load_trained(whole, None).step == job.last_step
    found = files.read_json(whole / "evaluation_val.json")
    assert found["checkpoint"]["step"] == job.last_step
    assert any("the run trained on these images too" in note for note in found["notes"])
    assert any(
        f"phase 1 trains on all {len(own)} images" in note for note in files.read_json(whole / "run.json")["notes"]
    )
