import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax import optim
from covidjax.train.step import Recipe, train_forward, train_step
from tests.support import (
    EVERYTHING_ON,
    assert_same_bits,
    make_batch,
    make_model,
    make_recipe,
    make_state,
    make_training,
    make_variables,
    small_config,
)


@pytest.mark.parametrize("strategy", ["until:layer3", "backbone", "all_but_norm"])
def test_frozen_leaves_have_no_optimizer_slot_and_no_average(strategy: str) -> None:
    config = small_config("resnet18", freeze=strategy, **EVERYTHING_ON)
    model = make_model(config)
    variables = jax.eval_shape(lambda: make_variables(model))
    recipe = make_recipe(config, model, variables)
    state = jax.eval_shape(lambda variables: make_state(recipe, variables), variables)
    trained = sum(leaf.trains for leaf in recipe.plan.leaves)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.shape]
    assert len(shapes) == 2 * trained + 1 and (trained,) in shapes  # Adam's two moments, and all counts
    assert len(jax.tree.leaves(state.average["params"])) == trained
    assert set(state.average["batch_stats"]) == set(recipe.plan.batch_norm_stages)
    assert trained < len(recipe.plan.leaves)


# By optimizer, a strategy that it is tried with every day; the slow set tries all with all.
STRATEGIES = {"adamw": "until:block2", "sgd": "backbone", "rmsprop": "all_but_norm", "adamax": ("block[13]/conv",)}
CNN: list[Any] = [("cnn", 32, optimizer, strategy, {}) for optimizer in STRATEGIES for strategy in STRATEGIES.values()]
DEEP: list[Any] = [("resnet18", 64, "adamw", strategy, {}) for strategy in ("until:layer3", "backbone")]
DEEP += [("resnet50", 64, "adamw", strategy, {}) for strategy in ("until:layer3", "backbone")]
FEW = ("cnn", 16, "adamw", "until:block2", {"model__width": 2, "model__num_blocks": 3})
HALF = ("cnn", 16, "adamw", "until:block2", {"precision": "float16"})


@pytest.mark.parametrize(
    ("model_name", "size", "optimizer", "strategy", "options"),
    [FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in (*CNN, *DEEP, HALF))],
)
def test_frozen_parameters_and_statistics_keep_their_bits(
    model_name: str, size: int, optimizer: str, strategy: Any, options: dict[str, Any]
) -> None:
    """After 20 steps what is frozen has its bits, and all that trains has moved."""
    changes = EVERYTHING_ON | {"optimizer__name": optimizer, "model__width": 4} | options
    config = small_config(model_name, freeze=strategy, augment__rotate=5.0, **changes)
    recipe, variables = make_training(config, size)
    before = jax.tree.map(np.asarray, variables)
    state, step = make_state(recipe, variables), jax.jit(partial(train_step, recipe=recipe))
    for seed in range(20):
        state = step(state, make_batch(size, seed=seed))
    same = jax.tree.map(np.array_equal, before, {"params": state.params, "batch_stats": state.batch_stats})
    kept = traverse_util.flatten_dict(same["params"], sep="/")
    assert kept == {leaf.path: not leaf.trains for leaf in recipe.plan.leaves}
    for stage in recipe.plan.normalised_stages:
        moves = stage in recipe.plan.batch_norm_stages
        assert set(jax.tree.leaves(same["batch_stats"][stage])) == {not moves}, stage


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch_without_batch_statistics() -> None:
    results = []
    with jax.enable_x64(True):
        for steps in (1, 4):
            changes = {"precision": "float64", "batch_norm": "running", "optimizer__name": "sgd"}
            config = small_config("cnn", accumulation_steps=steps, **changes)
            recipe, variables = make_training(config)
            state, step = make_state(recipe, variables), jax.jit(partial(train_step, recipe=recipe))
            for seed in range(3):
                state = step(state, make_batch(seed=seed))
            results.append(jax.tree.leaves(state.params))
    for one, four in zip(*results, strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-10, atol=1e-13)


def test_lean_keeps_less_for_the_backward_pass_and_gives_the_same_parameters() -> None:
    found = []
    with jax.enable_x64(True):
        for remat in ("none", "lean"):
            config = small_config("cnn", precision="float64", model__width=2, model__num_blocks=2)
            recipe, variables = make_training(config, 16, remat=remat)
            stepped = jax.jit(partial(train_step, recipe=recipe))(make_state(recipe, variables), make_batch(16))
            found.append((kept_bytes(recipe, variables), stepped.params))
    (much, one), (little, other) = found
    assert little < 0.7 * much
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-13), one, other)


def kept_bytes(recipe: Recipe, variables: Any) -> int:
    """What a forward pass hands over to its backward pass."""
    images = make_batch(16)["image"].astype(jnp.float64)

    def pullback(params: Any) -> Any:
        return jax.vjp(
            lambda p: train_forward(recipe, p, variables["batch_stats"], images, jax.random.key(0))[0], params
        )[1]

    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(pullback, variables["params"]))
    )


Tiny = tuple[Recipe, dict[str, Any], Any]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    """The recipe, the variables and the compiled step of a network of two blocks."""
    changes = {"ema_decay": 0.75, "freeze": "until:block1", "optimizer__name": "sgd", "optimizer__schedule": "plateau"}
    recipe, variables = make_training(small_config("cnn", model__width=2, model__num_blocks=2, **changes), 16)
    return recipe, variables, jax.jit(partial(train_step, recipe=recipe))


def kernel(params: Any) -> np.ndarray:
    return np.asarray(params["head"]["dense"]["kernel"])


def test_first_step_that_is_not_finite_is_named(tiny: Tiny) -> None:
    recipe, variables, step = tiny
    state = step(make_state(recipe, variables), make_batch(16))
    assert int(state.metrics.nonfinite_step) == -1
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    state = step(step(dataclasses.replace(state, params=broken), make_batch(16)), make_batch(16))
    assert int(state.metrics.nonfinite_step) == 1


def test_a_step_that_is_not_finite_is_left_out_where_that_is_asked(tiny: Tiny) -> None:
    recipe, variables, _ = tiny
    step = jax.jit(partial(train_step, recipe=dataclasses.replace(recipe, skip_nonfinite=True)))
    before = step(make_state(recipe, variables), make_batch(16))
    assert int(before.metrics.steps) == 1
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, before.params)
    after = step(dataclasses.replace(before, params=broken), make_batch(16))
    assert int(after.step) == 2
    assert_same_bits(after.metrics, before.metrics)
    for name in ("batch_stats", "opt_state", "average"):
        assert_same_bits(getattr(after, name), getattr(before, name))
    whole = step(before, make_batch(16))
    assert int(whole.metrics.steps) == 2
    assert not np.array_equal(kernel(whole.params), kernel(before.params))


def test_plateau_scale_scales_the_step(tiny: Tiny) -> None:
    recipe, variables, step = tiny
    full = make_state(recipe, variables)
    half = dataclasses.replace(full, plateau=dataclasses.replace(optim.plateau_init(), scale=jnp.float32(0.5)))
    start = kernel(variables["params"])
    whole, scaled = (kernel(step(state, make_batch(16)).params) - start for state in (full, half))
    np.testing.assert_allclose(scaled, 0.5 * whole, atol=1e-7)
    assert np.abs(whole).max() > 1e-5
