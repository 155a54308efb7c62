"""Where state and batches live: one named mesh over the local devices, and the step compiled over it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from covidjax.errors import UserError
from covidjax.train.state import TrainState
from covidjax.train.step import Batch, Recipe, train_step


def make_mesh(batch_size: int, accumulation_steps: int = 1) -> Mesh:
    """A mesh with one axis, 'data', over all local devices.

    Raises UserError where a batch (or a part of it, with accumulation) cannot be divided evenly over them.
    """
    count = jax.local_device_count()
    part = batch_size // accumulation_steps
    if part % count:
        raise UserError(
            f"config.batch_size {batch_size} in {accumulation_steps} part(s) does not divide over {count} devices: "
            f"choose a multiple of {count * accumulation_steps}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def resident_step(state: TrainState, split: Batch, indices: jax.Array, *, recipe: Recipe, mesh: Mesh) -> TrainState:
    """A train step whose batch is gathered on the device.

    split: the whole training split, {'image': [n, height, width, channels] uint8, 'label': [n] int32}, replicated;
    indices: [batch] int32, divided over the devices.
    """
    batch = jax.tree.map(lambda array: array[indices], split)
    return train_step(state, jax.lax.with_sharding_constraint(batch, by_example(mesh)), recipe=recipe)


def jit_step(recipe: Recipe, mesh: Mesh, *, resident: bool) -> Any:
    """The jitted step with donated state: `(state, split, indices)` if resident, else `(state, batch)`."""
    whole, parts = replicated(mesh), by_example(mesh)
    if resident:
        step: Callable[..., Any] = partial(resident_step, recipe=recipe, mesh=mesh)
        return jax.jit(step, in_shardings=(whole, whole, parts), out_shardings=whole, donate_argnums=0)
    step = partial(train_step, recipe=recipe)
    return jax.jit(step, in_shardings=(whole, parts), out_shardings=whole, donate_argnums=0)
