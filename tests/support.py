"""Small recipes, states and batches that several tests build on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import losses, models, optim
from covidjax.config import default_config
from covidjax.data.augment import augmentation_of
from covidjax.data.examples import Examples
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.ops.choose import choose
from covidjax.train.features import Caching, decide
from covidjax.train.inputs import PhaseInputs
from covidjax.train.phases import Phase, initial_state, make_phases
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe
from covidjax.weights import inputs as weight_inputs

ROOT = Path(__file__).parents[1]
# A network of two blocks on 24 phantoms.
TINY: dict[str, Any] = {
    "dataset__image_size": 16,
    "dataset__num_images": 24,
    "model__width": 2,
    "model__num_blocks": 2,
    "batch_size": 4,
}
# All that could touch a frozen parameter.
EVERYTHING_ON: dict[str, Any] = {
    "optimizer__name": "adamw",
    "optimizer__weight_decay": 0.1,
    "optimizer__clip_norm": 1.0,
    "accumulation_steps": 2,
    "ema_decay": 0.9,
}


def small_config(model: str = "cnn", **changes: Any) -> ConfigDict:
    """The defaults with a model and dotted changes, such as `optimizer__name='sgd'`."""
    config = default_config()
    config.model.name = model
    with config.unlocked():
        for key, value in changes.items():
            owner, _, leaf = key.replace("__", ".").rpartition(".")
            (config[owner] if owner else config)[leaf] = value
    return config


def make_model(config: ConfigDict, num_classes: int = 3) -> Staged:
    """The network of a config, as the commands build it: native operations, where there are, compile much faster."""
    return models.build(config.model, num_classes, config.precision, native=choose(config.ops).native)


def shapes_of(model: Staged, size: int | tuple[int, int] = 32, channels: int = 1) -> dict[str, Any]:
    """The shapes of a network's variables for images of so many pixels; nothing is computed."""
    size = (size, size) if isinstance(size, int) else size
    images = jax.ShapeDtypeStruct((2, *size, channels), model.numerics.param_dtype)
    return dict(jax.eval_shape(model.init, jax.random.key(0), images))


def make_variables(model: Staged, size: int | tuple[int, int] = 32, channels: int = 1) -> dict[str, Any]:
    """Weights and statistics drawn in NumPy: JAX would compile for seconds. Gradients flow through every branch."""
    generator = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.2
        return jnp.asarray((leaf.ndim == 1) + spread * generator.uniform(-1, 1, leaf.shape), leaf.dtype)

    return {"batch_stats": {}, **jax.tree.map(values, shapes_of(model, size, channels))}


def make_preprocessing(config: ConfigDict) -> Preprocessing:
    """What the network of a run does to pixels."""
    return weight_inputs.of_run(config.model, config.dataset.channels, config.pretrained, config.preprocessing).network


def make_caching(config: ConfigDict, recipe: Recipe, epochs: float, train: Examples, val: Examples) -> Caching:
    """What is cached in a phase of so many epochs."""
    options = {"mode": config.features, "max_views": config.feature_views}
    return decide(recipe, epochs, train, val, **options, configured_cache=config.dataset.cache_dir)


def make_recipe(
    config: ConfigDict, model: Staged, variables: Any, phase: Phase | None = None, **changes: Any
) -> Recipe:
    """The recipe of a phase, or of the only one of a config, with epochs of 10 steps."""
    if phase is None:
        (phase,) = make_phases(config, steps_per_epoch=10)
    plan = phase.plan(variables, model.stages)
    values: dict[str, Any] = {
        "model": model,
        "prefix": model,
        "plan": plan,
        "tx": optim.optimizer(phase.optimizer, plan.weight_decays()),
        "learning_rate": optim.learning_rate_schedule(phase.optimizer, phase.schedule_steps, 10),
        "momentum": optim.momentum_schedule(phase.optimizer, phase.schedule_steps),
        "loss": losses.loss_function(config.loss, None),
        "augmentation": augmentation_of(config.augment.to_dict()),
        "preprocessing": Preprocessing(),
        "schedule_start": phase.schedule_start,
        "accumulation_steps": config.accumulation_steps,
    }
    return Recipe(**values | changes)


def make_training(config: ConfigDict, size: int = 32, **changes: Any) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a config of one phase, and the variables that it starts from, for images of so many pixels."""
    model = make_model(config)
    variables = make_variables(model, size)
    return make_recipe(config, model, variables, **changes), variables


def make_state(recipe: Recipe, variables: Any, seed: int = 0) -> TrainState:
    return initial_state(recipe, variables, jax.random.key(seed))


def make_batch(size: int = 32, batch_size: int = 8, seed: int = 0) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (batch_size, size, size, 1), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.asarray(random.integers(0, 3, batch_size), jnp.int32)}


def on_devices(count: int) -> dict[str, str]:
    """What the environment of a child process adds so that it has this many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run_on_devices(count: int, module: str, *arguments: object) -> None:
    """Runs a module of these tests in a process with this many devices; it has to succeed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env=os.environ | on_devices(count), check=True)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths, keys of random numbers as numbers."""
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else leaf
        )
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def assert_same_bits(tree: Any, other: Any) -> None:
    """The same structure, and every array the same to the bit."""
    assert str(jax.tree.structure(tree)) == str(jax.tree.structure(other))
    expected = by_path(other)
    for path, leaf in by_path(tree).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def assert_close(tree: Any, other: Any, tolerance: float) -> None:
    """The same structure, and the largest difference of each array within a part of its largest value."""
    found, expected = by_path(tree), by_path(other)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        bound = tolerance * np.abs(value).max(initial=0)
        np.testing.assert_allclose(found[path], value, rtol=tolerance, atol=bound, err_msg=path)


def send_before(stop: int, patch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """A run in this process gets a signal when it is about to take a step, counted from one."""
    calls = PhaseInputs.calls

    def stopping(self: PhaseInputs, *arguments: Any) -> Iterator[Any]:
        step = arguments[4][0]
        for count, inputs in calls(self, *arguments):
            if step < stop <= step + count:
                os.kill(os.getpid(), number)
            step += count
            yield count, inputs

    patch.setattr(PhaseInputs, "calls", stopping)
