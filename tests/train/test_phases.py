import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import optim
from covidjax.train.phases import enter_phase, evaluation_variables
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe, learning_rate
from tests.support import assert_same_bits, make_model, make_recipe, make_state, make_variables, small_config


def tiny_config(**changes: Any) -> ConfigDict:
    """Stages block1, block2, head."""
    return small_config("cnn", model__width=2, model__num_blocks=2, **changes)


def tiny_variables(config: ConfigDict) -> Any:
    """Distinct numbers of the right shapes; nothing is compiled."""
    model = make_model(config)
    abstract = jax.eval_shape(lambda: make_variables(model))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.uniform(0.1, 1, leaf.shape), leaf.dtype), abstract)


def tiny_recipe(freeze: Any, **changes: Any) -> Recipe:
    config = tiny_config(freeze=freeze, **changes)
    return make_recipe(config, make_model(config), tiny_variables(config))


def after_training(recipe: Recipe) -> TrainState:
    """A state as training might leave it: no moment, count, average or plateau is what it was at the start."""
    generator = np.random.default_rng(1)

    def moved(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.asarray(generator.integers(5, 50, leaf.shape), leaf.dtype)
        return jnp.asarray(generator.uniform(2, 3, leaf.shape), leaf.dtype)

    state = make_state(recipe, tiny_variables(tiny_config()))
    carried = {name: jax.tree.map(moved, getattr(state, name)) for name in ("opt_state", "average", "plateau")}
    return dataclasses.replace(state, step=jnp.int32(40), **carried)


def test_averages_and_values_of_what_begins_goes_on_and_stops() -> None:
    old, new, both = (tiny_recipe(freeze, ema_decay=0.9) for freeze in ("until:block1", ("block2",), "none"))
    before = after_training(old)
    after = enter_phase(before, old, new)  # block1 begins, block2 stops, the head goes on
    assert_same_bits(after.average["params"]["head"], before.average["params"]["head"])
    assert_same_bits(after.average["params"]["block1"], before.params["block1"])
    assert not jax.tree.leaves(after.average["params"]["block2"])
    assert_same_bits(after.average["batch_stats"], {"block1": before.batch_stats["block1"]})
    goes_on = enter_phase(before, old, both).average["batch_stats"]["block2"]
    assert_same_bits(goes_on, before.average["batch_stats"]["block2"])
    for kind, whole, found in (
        ("params", before.params, after.params),
        ("batch_stats", before.batch_stats, after.batch_stats),
    ):
        assert_same_bits(found, {**whole, "block2": before.average[kind]["block2"]})  # as it was evaluated
    evaluated = evaluation_variables(before, old.plan)
    assert_same_bits(evaluated["batch_stats"], {**before.batch_stats, **before.average["batch_stats"]})


AVERAGED: dict[str, dict[str, Any]] = {
    "all": {"ema_decay": 0.9},
    "head only": {"ema_decays": (("head", 0.9),)},
    "all but kernels": {"ema_decay": 0.9, "ema_decays": (("kernel$", 0.0),)},
    "none": {},
}
STEPS_BETWEEN: list[tuple[Any, Any]] = [
    ("none", "backbone"),
    ("backbone", "none"),
    ("last:2", ("block2", "head")),
    ("norm", ("norm",)),
    (("norm",), "none"),
]


@pytest.mark.parametrize("averaged", AVERAGED)
@pytest.mark.parametrize(("first", "second"), STEPS_BETWEEN, ids=str)
def test_the_passage_between_phases_changes_nothing_that_is_evaluated(first: Any, second: Any, averaged: str) -> None:
    old, new = (tiny_recipe(freeze, **AVERAGED[averaged]) for freeze in (first, second))
    before = after_training(old)
    after = enter_phase(before, old, new)
    assert_same_bits(
        evaluation_variables(after, new.plan),
        evaluation_variables(before, old.plan),
    )
    fresh = make_state(new, {"params": after.params, "batch_stats": after.batch_stats})
    assert_same_bits(jax.tree.map(jnp.shape, after.average), jax.tree.map(jnp.shape, fresh.average))


def test_no_two_leaves_of_a_state_share_a_buffer_that_would_be_donated_twice() -> None:
    old, new = (tiny_recipe(freeze, ema_decay=0.9) for freeze in ("until:block1", ("block2",)))
    for state in (make_state(new, tiny_variables(tiny_config())), enter_phase(after_training(old), old, new)):
        carried = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, state.average))
        assert len({leaf.unsafe_buffer_pointer() for leaf in carried}) == len(carried)


def test_a_phase_begins_with_the_network_and_the_clock_of_the_last() -> None:
    old, new = tiny_recipe("backbone"), tiny_recipe("none")
    before = after_training(old)
    after = enter_phase(before, old, new)
    for name in ("params", "batch_stats", "step", "key"):
        assert_same_bits(getattr(after, name), getattr(before, name))
    assert int(after.step) == 40


def test_the_plateau_starts_anew_unless_the_schedule_goes_on() -> None:
    old, new = tiny_recipe("backbone"), tiny_recipe("none")
    before = after_training(old)
    assert float(before.plateau.scale) != 1.0
    assert_same_bits(
        enter_phase(before, old, dataclasses.replace(new, schedule_start=40)).plateau, optim.plateau_init()
    )
    assert_same_bits(enter_phase(before, old, new).plateau, before.plateau)  # both schedules start at step 0


def test_the_schedule_of_a_phase_starts_at_its_first_step() -> None:
    schedule = {"optimizer__schedule": "cosine", "optimizer__learning_rate": 0.5}
    recipe = dataclasses.replace(tiny_recipe("none", **schedule), schedule_start=40)
    state = dataclasses.replace(after_training(recipe), plateau=optim.plateau_init())
    assert float(learning_rate(state, recipe)) == 0.5
    later = dataclasses.replace(state, step=jnp.int32(40 + 50))  # the schedules of these recipes have 100 steps
    assert float(learning_rate(later, recipe)) == pytest.approx(0.25)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer__name": "adam"},
    "adamax": {"optimizer__name": "adamax"},
    "rmsprop": {"optimizer__name": "rmsprop"},
    "sgd": {"optimizer__name": "sgd"},
    "sgd without momentum": {"optimizer__name": "sgd", "optimizer__momentum": 0.0},
}


@pytest.mark.parametrize("second", OPTIMIZERS)
@pytest.mark.parametrize("first", OPTIMIZERS)
def test_another_optimizer_starts_fresh(first: str, second: str) -> None:
    old, new = tiny_recipe("backbone", **OPTIMIZERS[first]), tiny_recipe("until:block1", **OPTIMIZERS[second])
    before = after_training(old)
    after = enter_phase(before, old, new)
    fresh = new.tx.init(new.plan.split(after.params)[0])
    if first != second:
        assert_same_bits(after.opt_state, fresh)
    else:
        assert len(jax.tree.leaves(after.opt_state)) == len(jax.tree.leaves(fresh))
        now, then = (
            {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(optim.counts_by_leaf(state.opt_state))}
            for state in (after, before)
        )
        assert now >= then


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__learning_rate": 1e-5},
        {"optimizer__name": "adamw", "optimizer__weight_decay": 0.1},
        {"optimizer__clip_norm": 1.0},
        {"optimizer__schedule": "cosine"},
    ],
    ids=str,
)
def test_moments_outlive_a_change_of_rate_decay_or_clipping(changes: dict[str, Any]) -> None:
    old, new = tiny_recipe("backbone"), tiny_recipe("backbone", **changes)
    before = after_training(old)
    assert_same_bits(enter_phase(before, old, new).opt_state, before.opt_state)
