"""Runs of any kind that are stopped and started again end with the bits of those that were not."""

from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from covidjax import files
from covidjax.errors import Interrupted
from covidjax.ops.choose import choose
from covidjax.runs.train import train
from covidjax.train import loss_scale
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from tests.support import TINY, send_before, small_config
from tests.train.test_resume import assert_same_run, figures, finished_steps

ADAMW: dict[str, Any] = {"optimizer__name": "adamw", "optimizer__weight_decay": 0.01, "ema_decay": 0.9}
GRADUAL = {"freeze": "gradual:2", "epochs": 7, "optimizer__schedule": "one_cycle", "model__dropout": 0.2, **ADAMW}
VIEWS = {"freeze": "backbone", "feature_views": 2, "augment__contrast": 0.2, "phases": ({"epochs": 1}, {"epochs": 2})}
# What the run is, the steps that it is stopped before, and where the features of each of its phases live.
KINDS: dict[str, tuple[dict[str, Any], tuple[int, ...], list[str]]] = {
    "gradual": (GRADUAL, (20, 28), ["device", "device", ""]),
    "measured within epochs": ({**VIEWS, "evaluate_every_steps": 3}, (9,), ["device", "device"]),
    "native": ({"ops": "native", "freeze": "until:block1", "features": "off", "epochs": 2, **ADAMW}, (8,), [""]),
    "float16": ({"precision": "float16", "epochs": 2}, (8,), [""]),
    "best by auroc": ({"epochs": 3, "checkpoint__best": "auroc", "augment__crop_scale": 0.5}, (8,), [""]),
    "mixup and cutmix": (
        {"epochs": 2, "augment__mixup": 0.4, "augment__cutmix": 1.0, "loss__name": "focal"},
        (8,),
        [""],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_run_resumes_to_the_same_bits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "native" and not (choice := choose("auto")).native:
        pytest.skip(choice.note)
    monkeypatch.setattr(loss_scale, "FIRST", loss_scale.LARGEST)  # float16 overflows in its first steps
    (changes, stops, places), programs = KINDS[kind], Programs()

    def settings(cache: str) -> ConfigDict:
        return small_config("cnn", **TINY, **changes, steps_per_call=2, dataset__cache_dir=str(tmp_path / cache))

    train(settings("cache"), tmp_path / "whole", programs=programs)
    # The features of a phase are found the first time, and computed anew the second time.
    for stop, cache in zip(stops, ("cache", "another"), strict=False):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            send_before(stop, patch)
            train(settings(cache), tmp_path / "run", programs=programs)
        assert finished_steps(tmp_path / "run")[-1] == stop
    train(settings("another"), tmp_path / "run", programs=programs)
    assert_same_run(tmp_path / "run", tmp_path / "whole", prepare(settings("cache")))
    phases = files.read_json(tmp_path / "whole" / "run.json")["freeze"]
    assert [phase["features"]["placement"] for phase in phases] == places
    scales = [line for line in figures(tmp_path / "whole") if "loss_scale" in line]
    assert [line["loss_scale"] for line in scales] == [
        loss_scale.LARGEST / 2 ** line["skipped_steps"] for line in scales
    ]
    assert (kind == "float16") == any(line["skipped_steps"] > 0 for line in scales)
