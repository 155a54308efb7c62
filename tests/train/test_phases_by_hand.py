"""Phases and rates beside references in NumPy that know nothing of plans, masks or optimizer states."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from covidjax import losses, optim
from covidjax.train.phases import enter_phase, evaluation_variables, make_phases
from covidjax.train.step import Recipe, train_step
from tests.support import (
    assert_close,
    make_batch,
    make_model,
    make_recipe,
    make_state,
    make_training,
    make_variables,
    small_config,
)


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


LOW, HIGH = 2.0**-10, 2.0**-6  # and so all rates are exact in float32, in which they are kept
RATES = {"block1": 2.0**-10, "block2": 2.0**-8, "head": 2.0**-6}
DECAYS = {"block1": 0.0, "block2": 0.125, "head": 0.25}
AVERAGES = {"block1": 0.75, "block2": 0.75, "head": 0.5}
# Each phase by what trains in it: block2 comes late, the head stops and comes back.
PHASES: list[tuple[Any, int, set[str]]] = [
    (("block2",), 3, {"block1", "head"}),
    (("head",), 2, {"block1", "block2"}),
    ("none", 4, {"block1", "block2", "head"}),
]


def test_moments_decays_rates_and_averages_of_groups_over_phases_are_those_worked_out_by_hand() -> None:
    with jax.enable_x64(True):
        config = small_config(
            "cnn",
            model__width=2,
            model__num_blocks=2,
            precision="float64",
            batch_norm="running",
            optimizer__name="adamw",
            optimizer__learning_rate=(LOW, HIGH),
            optimizer__weight_decay=0.125,
            weight_decays=(("block1/", 0.0), ("head", 0.25)),
            ema_decay=0.75,
            ema_decays=(("head", 0.5),),
            phases=tuple({"freeze": freeze, "steps": steps} for freeze, steps, _ in PHASES),
        )
        model = make_model(config)
        variables = make_variables(model)
        recipes = [make_recipe(config, model, variables, phase) for phase in make_phases(config, steps_per_epoch=10)]
        gradients = gradients_of(recipes[0], variables["batch_stats"])
        state = make_state(recipes[0], variables)

        values = {path: np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(variables["params"])}
        adams: dict[Any, NumpyAdam] = {}
        averages: dict[Any, np.ndarray] = {}
        for index, (recipe, (_, steps, stages)) in enumerate(zip(recipes, PHASES, strict=True)):
            if index:
                state = enter_phase(state, recipes[index - 1], recipe)
            trained = {path for path in values if path[0].key in stages}
            for path in averages.keys() - trained:
                values[path] = averages[path]
            adams = {path: adams.get(path, NumpyAdam()) for path in trained}
            averages = {path: averages.get(path, values[path]) for path in trained}
            step = jax.jit(partial(train_step, recipe=recipe))
            for _ in range(steps):
                count = int(state.step) - recipe.schedule_start
                batch = make_batch(seed=int(state.step))
                tree = jax.tree.map_with_path(lambda path, leaf: values[path], variables["params"])
                for path, gradient in jax.tree.leaves_with_path(gradients(tree, batch)):
                    if path in trained:
                        stage, value = path[0].key, values[path]
                        shrunk = DECAYS[stage] * value if value.ndim >= 2 else 0.0
                        moved = adams[path].move(np.asarray(gradient), RATES[stage]) + RATES[stage] * shrunk
                        values[path] = value - moved
                        keep = min(AVERAGES[stage], (1 + count) / (10 + count))
                        averages[path] = keep * averages[path] + (1 - keep) * values[path]
                state = step(state, batch)
            evaluated = evaluation_variables(state, recipe.plan)
            for tree, reference in ((state.params, values), (evaluated["params"], values | averages)):
                expected = jax.tree.map_with_path(lambda path, leaf, known=reference: known[path], tree)
                assert_close(tree, expected, 1e-10)

        adam = optim.counts_by_leaf(state.opt_state)[1]
        counts = {path[0].key: int(leaf) for path, leaf in jax.tree.leaves_with_path(adam.counts)}
        assert counts == {"block1": 9, "block2": 6, "head": 4}


def one_cycle_by_hand(step: int, total: int, pct_start: float, peak: float) -> float:
    """torch.optim.lr_scheduler.OneCycleLR: the peak at step pct_start * total - 1, the end at the last step."""
    top = pct_start * total - 1
    if step <= top:
        start, end, fraction = peak / 25, peak, step / top
    else:
        start, end, fraction = peak, peak / 25 / 1e4, (step - top) / (total - 1 - top)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def slice_of_rates(low: float, high: float, count: int) -> list[float]:
    """fastai's slice(low, high) over layer groups: each the same multiple of the one before."""
    multiple = (high / low) ** (1 / (count - 1))
    return [low * multiple**index for index in range(count)]


def test_every_parameter_moves_by_the_rate_of_its_stage_at_its_step() -> None:
    total, pct_start, low, high = 60, 0.3, 1e-5, 1e-3
    with jax.enable_x64(True):
        optimizer = {"learning_rate": (low, high), "schedule": "one_cycle", "pct_start": pct_start}
        config = small_config(
            "cnn",
            model__width=2,
            precision="float64",
            phases=({"steps": total, "optimizer": optimizer},),
            lr_scale=(("head/.*bias", 0.5),),
            model__num_blocks=3,
        )
        # A direction of ones, so that what a parameter moves by is its rate.
        ones = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))
        recipe, variables = make_training(config, tx=ones)
        step = jax.jit(partial(train_step, recipe=recipe))
        state, batch = make_state(recipe, variables), make_batch(size=16)
        by_stage = dict(zip(recipe.model.stages, slice_of_rates(low, high, len(recipe.model.stages)), strict=True))
        assert len(by_stage) == 4
        for number in (0, 1, 5, 16, 17, 18, 30, 58, 59):
            state = dataclasses.replace(state, step=jnp.int32(number))
            after = step(state, batch)
            moved = jax.tree.map(lambda a, b: a - b, state.params, after.params)
            for path, leaf in jax.tree.leaves_with_path(moved):
                stage, kind = path[0].key, path[-1].key
                peak = by_stage[stage] * (0.5 if (stage, kind) == ("head", "bias") else 1.0)
                expected = one_cycle_by_hand(number, total, pct_start, peak)
                # Rates are in float32, and the cosine at its end is a difference of numbers as large as the peak.
                assert float(jnp.max(jnp.abs(leaf - expected))) < 3e-7 * peak, (number, path)
