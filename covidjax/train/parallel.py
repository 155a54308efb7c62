"""Placement of state and batches: one named mesh over the local devices, and the step compiled over it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from covidjax.mesh import by_example, by_largest_axis, by_second_axis, replicated
from covidjax.train.state import TrainState
from covidjax.train.step import Batch, Recipe, train_step


def shardings(state: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a `TrainState`, of arrays or their shapes.

    Parameters, optimizer state and averages, of frozen leaves too, lie in parts over the axis 'fsdp' of the mesh where
    an axis of theirs can be divided; all else is whole on every device.
    """
    placed = jax.tree.map(lambda _: replicated(mesh), state)
    divided = {
        name: jax.tree.map(lambda leaf: by_largest_axis(leaf.shape, mesh), getattr(state, name))
        for name in ("params", "opt_state", "average")
    }
    return dataclasses.replace(placed, **divided)


def throttle(state: TrainState, mesh: Mesh) -> None:
    """Waits for the step on several CPU devices, where collectives of steps that run ahead wait for each other."""
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(state.step)


def resident_steps(
    state: TrainState,
    split: Batch,
    indices: jax.Array,
    count: jax.Array | None = None,
    *,
    recipe: Recipe,
    parts: NamedSharding | None = None,
) -> TrainState:
    """Train steps whose batches are gathered on the device, one after the other in one program.

    split: the whole training split, {'image': [n, height, width, channels] uint8, 'label': [n] int32}, or with
    'features' in place of images, replicated; indices: [steps, batch] int32; count: how many of the steps are taken,
    all by default; parts: how jit divides the batches.
    """

    def one(state: TrainState, indices: jax.Array) -> tuple[TrainState, None]:
        batch = jax.tree.map(lambda array: array[indices], split)
        if parts is not None:
            batch = jax.lax.with_sharding_constraint(batch, parts)
        return train_step(state, batch, recipe=recipe), None

    if count is not None:  # a loop for one step too: outside of it the same step has other roundings
        return jax.lax.fori_loop(0, count, lambda number, state: one(state, indices[number])[0], state)
    if len(indices) == 1:  # a loop of one turn would keep the compiler from seeing the whole step
        return one(state, indices[0])[0]
    return jax.lax.scan(one, state, indices)[0]


def mapped_step(
    recipe: Recipe, mesh: Mesh, engine: str = "jit", *, resident: bool, counted: bool = False, placed: Any = None
) -> Any:
    """The step under the engine that config.parallel names, not compiled yet, with donated state.

    It takes `(state, split, indices)` if resident, with the number of steps that are taken of `indices` if also
    counted, else `(state, batch)`. placed: the shardings of the state, whole on every device by default.
    'pmap' is for those who think in devices: each runs the step on its part of the batch, so batches and indices have
    an axis of devices, see `divide`; gradients and statistics are averaged over them, but with `sync_batch_norm` off
    each normalises its part by statistics of that part alone.
    """
    whole, parts = replicated(mesh), by_example(mesh)
    step: Callable[..., Any] = partial(resident_steps, parts=parts if engine == "jit" else None)
    step = step if resident else train_step
    if engine == "jit":
        placed = whole if placed is None else placed
        inwards = (placed, whole, by_second_axis(mesh), *[whole] * counted) if resident else (placed, parts)
        step = partial(step, recipe=recipe)
        return jax.jit(step, in_shardings=inwards, out_shardings=placed, donate_argnums=0)
    recipe = dataclasses.replace(recipe, axis=mesh.axis_names[0])
    axes = (None, None, 1, *[None] * counted) if resident else (None, 0)
    devices = list(mesh.devices.flat)
    step = partial(step, recipe=recipe)
    return jax.pmap(step, recipe.axis, in_axes=axes, out_axes=None, devices=devices, donate_argnums=0)
