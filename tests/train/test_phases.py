import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import losses, optim
from covidjax.errors import UserError
from covidjax.train.phases import enter_phase, evaluation_variables, make_phases, phase_at
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe, learning_rate, train_step
from tests.support import make_batch, make_model, make_recipe, make_state, make_variables, small_config

RATES = (2.0**-6, 2.0**-8)  # exact in float32, in which the rate is kept


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


def assert_equal(tree: Any, other: Any) -> None:
    assert str(jax.tree.structure(tree)) == str(jax.tree.structure(other))
    for leaf, twin in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, twin)


def only_holes(tree: Any) -> bool:
    return not jax.tree.leaves(tree)


def test_phases_follow_one_another_and_change_only_what_they_name() -> None:
    config = tiny_config(
        epochs=3,
        freeze="backbone",
        lr_scale=(("head", 2),),
        phases=(
            {"epochs": 2},
            {"freeze": ("block1",), "optimizer": {"learning_rate": 1e-4}},
            {"epochs": 1, "freeze": "none", "batch_norm": "running", "lr_scale": (), "optimizer": {"name": "sgd"}},
        ),
    )
    first, second, third = make_phases(config, steps_per_epoch=10)
    assert [(phase.index, phase.first_step, phase.last_step) for phase in (first, second, third)] == [
        (0, 0, 20),
        (1, 20, 50),
        (2, 50, 60),
    ]
    assert [phase.freeze for phase in (first, second, third)] == ["backbone", ("block1",), "none"]
    assert [phase.batch_norm for phase in (first, second, third)] == ["auto", "auto", "running"]
    assert [phase.lr_scale for phase in (first, second, third)] == [(("head", 2.0),), (("head", 2.0),), ()]
    assert [phase.optimizer.learning_rate for phase in (first, second, third)] == [1e-3, 1e-4, 1e-3]
    assert [phase.optimizer.name for phase in (first, second, third)] == ["adam", "adam", "sgd"]
    assert second.optimizer.to_dict() == config.optimizer.to_dict() | {"learning_rate": 1e-4}


def test_a_config_without_phases_is_one_phase() -> None:
    (phase,) = make_phases(tiny_config(epochs=3, freeze="backbone"), steps_per_epoch=10)
    assert (phase.first_step, phase.last_step, phase.freeze) == (0, 30, "backbone")


def test_a_boundary_belongs_to_the_phase_that_it_ends() -> None:
    phases = make_phases(tiny_config(phases=({"epochs": 2}, {"epochs": 1})), steps_per_epoch=10)
    assert [phase_at(phases, step).index for step in (0, 1, 20, 21, 30)] == [0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="step 31 lies beyond the 30 steps"):
        phase_at(phases, 31)


def test_moments_stay_with_leaves_that_stay_trainable() -> None:
    old, new = tiny_recipe("until:block1"), tiny_recipe(("block2",))  # block1 begins, block2 stops, head goes on
    before = after_training(old)
    after = enter_phase(before, old, new)
    was, now = before.opt_state[1], after.opt_state[1]
    for name in ("count", "mu", "nu"):
        assert_equal(getattr(now, name)["head"], getattr(was, name)["head"])
        assert only_holes(getattr(now, name)["block2"])
        assert {float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(getattr(now, name)["block1"])} == {0.0}
    assert_equal(
        jax.tree.map(jnp.shape, after.opt_state), jax.tree.map(jnp.shape, new.tx.init(new.plan.split(after.params)[0]))
    )


def test_averages_stay_with_what_goes_on_changing() -> None:
    old, new = (tiny_recipe(freeze, ema_decay=0.9) for freeze in ("until:block1", ("block2",)))
    before = after_training(old)
    after = enter_phase(before, old, new)
    assert_equal(after.average["params"]["head"], before.average["params"]["head"])
    assert_equal(after.average["params"]["block1"], before.params["block1"])
    assert only_holes(after.average["params"]["block2"])
    assert_equal(after.average["batch_stats"], {"block1": before.batch_stats["block1"]})
    both = tiny_recipe("none", ema_decay=0.9)
    assert_equal(
        enter_phase(before, old, both).average["batch_stats"]["block2"], before.average["batch_stats"]["block2"]
    )


def test_a_phase_begins_with_the_network_and_the_clock_of_the_last() -> None:
    old, new = tiny_recipe("backbone"), tiny_recipe("none")
    before = after_training(old)
    after = enter_phase(before, old, new)
    assert_equal(after.params, before.params)
    assert_equal(after.batch_stats, before.batch_stats)
    assert int(after.step) == 40
    assert jax.random.key_data(after.key).tolist() == jax.random.key_data(before.key).tolist()


def test_the_plateau_starts_anew() -> None:
    old, new = tiny_recipe("backbone"), tiny_recipe("none")
    before = after_training(old)
    assert float(before.plateau.scale) != 1.0
    assert_equal(enter_phase(before, old, new).plateau, optim.plateau_init())


def test_the_schedule_of_a_phase_starts_at_its_first_step() -> None:
    schedule = {"optimizer__schedule": "cosine", "optimizer__learning_rate": 0.5}
    recipe = dataclasses.replace(tiny_recipe("none", **schedule), first_step=40)
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
        assert_equal(after.opt_state, fresh)
    else:
        assert len(jax.tree.leaves(after.opt_state)) == len(jax.tree.leaves(fresh))
        kept = {leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(after.opt_state))}
        assert kept >= {leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(before.opt_state))}


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
    assert_equal(enter_phase(before, old, new).opt_state, before.opt_state)


def test_evaluation_takes_the_averages_where_there_are_any() -> None:
    recipe = tiny_recipe("until:block1", ema_decay=0.9)
    state = after_training(recipe)
    found = evaluation_variables(state.params, state.batch_stats, state.average, recipe.plan)
    for kind, whole in (("params", state.params), ("batch_stats", state.batch_stats)):
        assert_equal(found[kind]["block1"], whole["block1"])
        assert_equal(found[kind]["block2"], state.average[kind]["block2"])
    assert_equal(found["params"]["head"], state.average["params"]["head"])
    plain = evaluation_variables(state.params, state.batch_stats, None, recipe.plan)
    assert_equal(plain, {"params": state.params, "batch_stats": state.batch_stats})


class NumpyAdam:
    """Adam of Kingma and Ba with the epsilon of Keras, for one array."""

    def __init__(self) -> None:
        self.steps = 0
        self.mean = self.square = np.zeros(())

    def move(self, gradient: np.ndarray, rate: float) -> np.ndarray:
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        corrected = rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        return corrected * self.mean / (np.sqrt(self.square) + 1e-7)


def gradients_of(recipe: Recipe, batch_stats: Any) -> Callable[..., Any]:
    """Gradients for all parameters, whatever the plan, by a forward pass of its own."""

    @jax.jit
    @jax.grad
    def gradients(params: Any, batch: Any) -> jax.Array:
        images = (batch["image"].astype(jnp.float64) / 255 - 0.5) / 0.25
        logits = recipe.model.apply({"params": params, "batch_stats": batch_stats}, images)
        return jnp.mean(losses.softmax_cross_entropy(logits, batch["label"]))  # type: ignore[arg-type]

    return gradients


def test_leaves_that_begin_to_train_later_have_a_bias_correction_of_their_own() -> None:
    with jax.enable_x64(True):
        common: dict[str, Any] = {"precision": "float64", "batch_norm": "running"}
        config = tiny_config(**common)
        model = make_model(config)
        variables = jax.jit(make_variables, static_argnums=0)(model)
        first = make_recipe(
            tiny_config(freeze="backbone", optimizer__learning_rate=RATES[0], **common), model, variables
        )
        second = make_recipe(tiny_config(freeze="none", optimizer__learning_rate=RATES[1], **common), model, variables)
        second = dataclasses.replace(second, first_step=6)

        state = make_state(first, variables)
        reference = {path: np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(variables["params"])}
        adams = {path: NumpyAdam() for path in reference}
        gradients = gradients_of(first, variables["batch_stats"])
        for recipe, rate in zip((first, second), RATES, strict=True):
            if recipe is second:
                state = enter_phase(state, first, second)
            step = jax.jit(partial(train_step, recipe=recipe))
            for _ in range(6):
                batch = make_batch(seed=int(state.step))
                tree = jax.tree.map_with_path(lambda path, leaf: reference[path], variables["params"])
                for path, gradient in jax.tree.leaves_with_path(gradients(tree, batch)):
                    if recipe is second or path[0].key == "head":
                        reference[path] = reference[path] - adams[path].move(np.asarray(gradient), rate)
                state = step(state, batch)
        for path, leaf in jax.tree.leaves_with_path(state.params):
            np.testing.assert_allclose(
                leaf, reference[path], rtol=1e-10, atol=1e-12, err_msg=jax.tree_util.keystr(path)
            )
        counts = {path[0].key: int(leaf) for path, leaf in jax.tree.leaves_with_path(state.opt_state[1].count)}
        assert counts == {"block1": 6, "block2": 6, "head": 12}
