"""What a plan makes idle, and weights that are frozen as they were drawn, are noted before the first step."""

from typing import Any

import pytest

from covidjax.train.effects import NO_EFFECT, WARNING
from covidjax.train.setup import prepare
from tests.support import TINY, small_config


def notes(**changes: Any) -> list[str]:
    return list(prepare(small_config("cnn", **TINY, **changes)).notes)


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({"lr_scale": (("block1", 0.1),), "freeze": "until:block1"}, "lr_scale of 'block1' (what it is for is frozen"),
        (
            {"lr_scale": (("block", 0.1), ("block2", 0.5))},
            "lr_scale of 'block2' (what it is for is frozen, or has an earlier pattern)",
        ),
        (
            {"weight_decays": (("block1", 0.1),), "freeze": "backbone"},
            "weight_decays of 'block1' (what it is for is frozen",
        ),
        (
            {"ema_decays": (("block1", 0.9),), "freeze": "until:block1"},
            "ema_decays of 'block1' (what it is for is frozen",
        ),
        ({"prefix_precision": "bfloat16"}, "prefix_precision (the first stage trains)"),
        ({"feature_views": 2, "freeze": "backbone"}, "feature_views (nothing is augmented)"),
        ({"feature_views": 2, "augment__flip": True}, "feature_views (no features are cached)"),
        ({"remat": ("block1",), "freeze": "until:block1"}, "remat of 'block1' (frozen)"),
        ({"parallel": "pmap", "sync_batch_norm": False, "freeze": "backbone"}, "sync_batch_norm (no stage runs on"),
        ({"model__attention": True}, "model.attention (cnn has none)"),
    ],
)
def test_what_a_plan_makes_idle_is_noted(changes: dict[str, Any], idle: str) -> None:
    assert any(note.startswith(NO_EFFECT) and idle in note for note in notes(**changes))


def test_what_has_an_effect_is_not_noted() -> None:
    used = {
        "lr_scale": (("block2", 0.1),),
        "remat": ("block2",),
        "prefix_precision": "bfloat16",
        "freeze": "until:block1",
    }
    assert not [note for note in notes(**used) if note.startswith(NO_EFFECT)]


def test_weights_that_are_frozen_as_they_were_drawn_are_a_warning() -> None:
    assert [note for note in notes(freeze="backbone") if note.startswith(WARNING)] != []
    (told,) = (note for note in notes(phases=({"epochs": 1, "freeze": "norm"}, {})) if note.startswith(WARNING))
    assert "are frozen at random values in the first phase, as config.freeze is 'norm' there" in told
    assert not [note for note in notes() if note.startswith(WARNING)]


def test_half_precision_on_a_cpu_says_what_it_costs_and_which_operations_run() -> None:
    (told,) = (note for note in notes(precision="bfloat16") if note.startswith("precision: "))
    assert told.startswith(
        "precision: bfloat16 is emulated on a CPU, where XLA's operations convert to float32 and back"
    )
    assert not any(note.startswith("precision: ") for note in notes())
