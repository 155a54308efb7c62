"""float16: the loss is scaled, a step whose gradients overflow changes nothing, and what is frozen stays as it is."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import losses, models
from covidjax.errors import UserError
from covidjax.tasks.classification import CLASSIFICATION
from covidjax.train import loop, loss_scale
from covidjax.train.loss_scale import LARGEST, LossScale
from covidjax.train.parallel import step_and_figures
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe, train_step
from tests.support import (
    EVERYTHING_ON,
    make_batch,
    make_state,
    make_training,
    small_config,
)

SIZE = 8
GOOD, BAD = {"a": jnp.ones(2)}, {"a": jnp.array([1.0, jnp.inf])}


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A small network with all that looks at gradients turned on; step: compiled."""

    recipe: Recipe
    variables: dict[str, Any]
    step: Any

    def state(self) -> TrainState:
        return make_state(self.recipe, self.variables)


@pytest.fixture(scope="module")
def half() -> Subject:
    config = small_config("cnn", precision="float16", model__width=2, model__num_blocks=1, **EVERYTHING_ON)
    recipe, variables = make_training(config, SIZE)
    return Subject(recipe, variables, jax.jit(partial(train_step, recipe=recipe)))


def at_scale(state: TrainState, scale: float) -> TrainState:
    assert state.loss_scale is not None
    return dataclasses.replace(state, loss_scale=dataclasses.replace(state.loss_scale, scale=jnp.float32(scale)))


def changed_by(before: TrainState, after: TrainState) -> set[str]:
    """The fields of the state that a step has changed."""
    names = {field.name for field in dataclasses.fields(TrainState)} - {"key"}
    return {
        name
        for name in names
        if any(
            not np.array_equal(one, other)
            for one, other in zip(*(jax.tree.leaves(getattr(s, name)) for s in (before, after)), strict=True)
        )
    }


def as_numbers(scale: LossScale) -> tuple[float, int, int]:
    return float(scale.scale), int(scale.good_steps), int(scale.skipped_steps)


# ---- The scale ----


def test_scale_doubles_after_good_steps_in_a_row_and_halves_at_an_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GOOD_STEPS", 3)
    scale = loss_scale.fresh(jnp.float16)
    assert scale is not None
    steps = [
        (GOOD, True, (2.0**15, 1, 0)),
        (GOOD, True, (2.0**15, 2, 0)),
        (BAD, False, (2.0**14, 0, 1)),
        (GOOD, True, (2.0**14, 1, 1)),
        (GOOD, True, (2.0**14, 2, 1)),
        (GOOD, True, (2.0**15, 0, 1)),
        (BAD, False, (2.0**14, 0, 2)),
        ({"a": jnp.array([jnp.nan])}, False, (2.0**13, 0, 3)),
    ]
    for gradients, expected, numbers in steps:
        scale, counts = scale.after(gradients)
        assert (bool(counts), as_numbers(scale)) == (expected, numbers)


def test_two_thousand_good_steps_double_the_scale_up_to_the_largest() -> None:
    for before, after in ((8.0, 16.0), (LARGEST, LARGEST)):
        scale = LossScale(jnp.float32(before), jnp.int32(1998), jnp.int32(5))
        scale, _ = scale.after(GOOD)
        assert as_numbers(scale) == (before, 1999, 5)
        assert as_numbers(scale.after(GOOD)[0]) == (after, 0, 5)


@pytest.mark.parametrize("precision", models.PRECISIONS)
def test_only_activations_in_float16_have_a_scale(precision: str) -> None:
    dtype, _ = models.PRECISIONS[precision]
    assert (loss_scale.fresh(dtype) is not None) == (precision == "float16")


def test_gradients_too_small_for_float16_come_through_and_no_other_changes() -> None:
    def loss(x: jax.Array, factor: float) -> Any:
        return factor * jnp.sum(x.astype(jnp.float16).astype(jnp.float32) ** 2), x + 1

    x, scale = jnp.array([0.5, -2.0]), LossScale(jnp.float32(2**15), jnp.int32(0), jnp.int32(0))
    for factor, lost in ((1e-9, True), (0.125, False)):
        (value, other), found = loss_scale.value_and_grad(loss, scale)(x, factor)
        (plain_value, plain_other), plain = loss_scale.value_and_grad(loss, None)(x, factor)
        np.testing.assert_array_equal(value, plain_value)
        np.testing.assert_array_equal(other, plain_other)
        np.testing.assert_allclose(found, 2 * factor * np.array([0.5, -2.0]), rtol=1e-3)
        np.testing.assert_array_equal(plain, 0 * found if lost else found)


# ---- The step ----


def test_step_whose_gradients_overflow_changes_nothing_but_its_count_and_the_scale(half: Subject) -> None:
    before = at_scale(half.state(), 256.0)
    taken = half.step(before, make_batch(SIZE))
    everything = {"step", "params", "batch_stats", "opt_state", "average", "metrics", "loss_scale"}
    assert changed_by(before, taken) == everything
    former = at_scale(taken, LARGEST)
    skipped = half.step(former, make_batch(SIZE, seed=1))
    assert changed_by(former, skipped) == {"step", "loss_scale"}
    assert as_numbers(skipped.loss_scale) == (LARGEST / 2, 0, 1)
    again, figures = jax.jit(partial(step_and_figures, recipe=half.recipe))(former, make_batch(SIZE, seed=1))
    assert np.isnan(figures["loss"])
    assert changed_by(skipped, again) == set()


def test_what_is_not_finite_at_any_scale_is_reported(half: Subject) -> None:
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, half.variables["params"])
    state = at_scale(dataclasses.replace(half.state(), params=broken), 4.0)
    saver: Any = SimpleNamespace(flush=lambda: None, checkpoints=SimpleNamespace(steps=list))
    for scale in (2.0, 1.0):
        state = half.step(state, make_batch(SIZE))
        assert float(state.loss_scale.scale) == scale
        assert int(loop.fetch_sums(state, half.recipe, saver).steps) == 0
    assert np.isnan(loop.train_figures(CLASSIFICATION, half.recipe, state, state.metrics, 8)["loss"])
    state = half.step(state, make_batch(SIZE))
    with pytest.raises(UserError, match=r"is not finite in step 3 \(learning rate 0.001, loss scale 1\)"):
        loop.fetch_sums(state, half.recipe, saver)


def test_devices_skip_a_step_together(half: Subject) -> None:
    weighted = partial(losses.softmax_cross_entropy, class_weights=(1.0, 1.0, 1e6))
    recipe = dataclasses.replace(half.recipe, axis="data", loss=weighted, accumulation_steps=1)
    step = jax.vmap(partial(train_step, recipe=recipe), in_axes=(None, 0), out_axes=None, axis_name="data")
    batch = jax.tree.map(lambda array: array.reshape(2, 4, *array.shape[1:]), make_batch(SIZE))
    before, compiled = at_scale(half.state(), 256.0), jax.jit(step)
    for label, skips in ((2, 1), (1, 0)):  # of one image on the second device
        after = compiled(before, {**batch, "label": jnp.zeros((2, 4), jnp.int32).at[1, 3].set(label)})
        assert int(after.loss_scale.skipped_steps) == skips
        assert ("params" in changed_by(before, after)) == (not skips)
