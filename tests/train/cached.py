"""The same steps through the whole network and from cached features, on the same batches."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covidjax import losses, models
from covidjax.data.store import ArrayStore
from covidjax.mesh import make_mesh, replicated
from covidjax.train.features import DAMAGED, PrefixFeatures
from covidjax.train.inputs import PhaseInputs
from covidjax.train.parallel import mapped_step
from covidjax.train.programs import Programs
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe
from tests.support import assert_close, by_path, make_state, make_training

EPOCH_STEPS = 5
STEPS_PER_CALL = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A network with a frozen prefix, and what it trains on: images [n, height, width, 1] uint8, labels of any kind."""

    recipe: Recipe
    variables: dict[str, Any]
    images: np.ndarray
    labels: np.ndarray
    batch_size: int


def make_case(config: ConfigDict, size: int, *, of_pixels: bool = False, **changes: Any) -> Case:
    """A network of a config with drawn weights, and images of noise; labels are of pixels or of images."""
    if of_pixels:
        changes["loss"] = pixel_loss
    if config.prefix_precision:
        changes["prefix"] = models.build(config.model, 3, config.prefix_precision)
    recipe, variables = make_training(config, size, **changes)
    generator, count = np.random.default_rng(1), EPOCH_STEPS * config.batch_size
    images = generator.integers(0, 256, (count, size, size, 1), np.uint8)
    shape = (count, size, size) if of_pixels else (count,)
    return Case(recipe, variables, images, generator.integers(0, 3, shape, np.int32), config.batch_size)


def pixel_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the pixels of each image."""
    return jnp.mean(losses.softmax_cross_entropy(logits, labels), axis=(1, 2))


def passes(folder: Path) -> PrefixFeatures:
    """Those that keep features in a folder."""
    return PrefixFeatures(ArrayStore(folder, DAMAGED), make_mesh(1), Programs())


def through_the_network(case: Case, steps: int) -> TrainState:
    """The state after so many steps on the images."""
    return train(case.recipe, case.variables, {"image": case.images}, case, steps)


def from_features(case: Case, folder: Path, steps: int) -> TrainState:
    """The state after as many steps on what the frozen prefix makes of them; its own weights are NaN by then."""
    features = passes(folder).features(case.recipe, case.variables, case.images)
    prefix = case.recipe.plan.frozen_prefix
    variables = {
        kind: {
            stage: jax.tree.map(lambda leaf: leaf * jnp.nan, tree) if stage in prefix else tree
            for stage, tree in stages.items()
        }
        for kind, stages in case.variables.items()
    }
    return train(dataclasses.replace(case.recipe, cached=True), variables, {"features": features}, case, steps)


def train(recipe: Recipe, variables: Mapping[str, Any], inputs: dict[str, Any], case: Case, steps: int) -> TrainState:
    """The state after so many steps. inputs: {'image' or 'features'} of all examples."""
    mesh = make_mesh(case.batch_size)
    split = jax.device_put({**inputs, "label": case.labels}, replicated(mesh))
    feed = PhaseInputs((split,), 1, np.arange(len(case.images), dtype=np.int32), True, None, None)
    step: Callable[..., TrainState] = mapped_step(recipe, mesh, resident=True)
    state = jax.device_put(jax.tree.map(jnp.array, make_state(recipe, variables)), replicated(mesh))
    for _, arguments in feed.calls(mesh, "jit", 0, case.batch_size, (0, steps), STEPS_PER_CALL):
        state = step(state, *arguments)
    assert int(state.step) == steps
    return state


def trained_part(case: Case, state: TrainState) -> dict[str, np.ndarray]:
    """By path, everything that training changes; the frozen prefix is left out."""
    plan = case.recipe.plan
    found = {
        "params": plan.split(state.params)[0],
        "batch_stats": {stage: state.batch_stats[stage] for stage in plan.batch_norm_stages},
        "opt_state": state.opt_state,
        "average": state.average,
        "sums": state.metrics,
    }
    return by_path(found)


def assert_same_training(case: Case, one: TrainState, other: TrainState, tolerance: float) -> None:
    """Of every array, the largest difference against the largest value."""
    start = trained_part(case, make_state(case.recipe, case.variables))
    found, expected = trained_part(case, one), trained_part(case, other)
    assert_close(found, expected, tolerance)
    for path, value in expected.items():
        assert np.all(np.isfinite(value)), path
        assert not np.array_equal(value, start[path]) or "nonfinite_step" in path, f"{path} did not train"
