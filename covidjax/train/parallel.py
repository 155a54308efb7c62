"""Placement of state and batches: one named mesh, and the step compiled over it."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from covidjax.errors import some_of
from covidjax.mesh import by_example, by_largest_axis, replicated
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Batch, Recipe, learning_rate, train_step

Figures = dict[str, jax.Array]


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


def bytes_on_device(tree: Any, placed: Any) -> int:
    """What each device holds of a tree of arrays, or of their shapes, under these shardings."""
    each = zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True)
    return sum(math.prod(own.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, own in each)


def division_notes(params: Any, mesh: Mesh) -> list[str]:
    """What of the parameters lies over devices in parts, and what is whole on each; nothing where all is."""
    if "fsdp" not in mesh.axis_names:
        return []
    leaves = jax.tree_util.tree_leaves_with_path(params)
    whole = [path for path, leaf in leaves if by_largest_axis(leaf.shape, mesh) == replicated(mesh)]
    placed = jax.tree.map(lambda leaf: by_largest_axis(leaf.shape, mesh), params)
    own, together = bytes_on_device(params, placed), sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    names = some_of(jax.tree_util.keystr(path, simple=True, separator="/") for path in whole)
    return [
        f"fsdp: a device holds {own / 2**20:,.2f} of {together / 2**20:,.2f} MiB of parameters, and of optimizer state "
        f"likewise; whole on each are {len(whole)} of {len(leaves)} arrays{': ' + names if whole else ''}"
    ]


def throttle(state: TrainState, mesh: Mesh) -> None:
    """Waits for the step on several CPU devices, where collectives of steps that run ahead wait for each other."""
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(state.step)


def step_and_figures(state: TrainState, batch: Batch, *, recipe: Recipe) -> tuple[TrainState, Figures]:
    """A train step, and its figures: 'loss', NaN where the step was left out, and 'learning_rate', both []."""
    stepped = train_step(dataclasses.replace(state, metrics=StepMetrics.empty()), batch, recipe=recipe)
    own = stepped.metrics
    loss = jnp.where(own.steps > 0, own.loss, jnp.nan)
    figures = {"loss": loss, "learning_rate": learning_rate(state, recipe).astype(loss.dtype)}
    return dataclasses.replace(stepped, metrics=state.metrics.plus(own)), figures


def resident_steps(
    state: TrainState,
    split: Batch,
    indices: jax.Array,
    count: jax.Array | None = None,
    *,
    recipe: Recipe,
    parts: NamedSharding | None = None,
) -> tuple[TrainState, Figures]:
    """Train steps whose batches are gathered on the device, one after the other in one program, and their figures.

    split: the whole training split, {'image': [n, height, width, channels] uint8, 'label': [n] int32}, or with
    'features' in place of images, replicated; indices: [steps, batch] int32; count: how many of the steps are taken,
    all by default; parts: how jit divides the batches. Figures are those of `step_and_figures`, [steps] each.
    """

    def one(state: TrainState, indices: jax.Array) -> tuple[TrainState, Figures]:
        batch = jax.tree.map(lambda array: array[indices], split)
        if parts is not None:
            batch = jax.lax.with_sharding_constraint(batch, parts)
        return step_and_figures(state, batch, recipe=recipe)

    def counted(number: jax.Array, carry: tuple[TrainState, Figures]) -> tuple[TrainState, Figures]:
        state, figures = one(carry[0], indices[number])
        return state, jax.tree.map(lambda all_steps, own: all_steps.at[number].set(own), carry[1], figures)

    if count is not None:  # a loop for one step too: outside of it the same step has other roundings
        none = jnp.zeros(len(indices), state.metrics.loss.dtype)
        return jax.lax.fori_loop(0, count, counted, (state, {"loss": none, "learning_rate": none}))
    if len(indices) == 1:  # a loop of one turn would keep the compiler from seeing the whole step
        state, figures = one(state, indices[0])
        return state, jax.tree.map(lambda own: own[None], figures)
    return jax.lax.scan(one, state, indices)


def mapped_step(
    recipe: Recipe,
    mesh: Mesh,
    engine: str = "jit",
    *,
    resident: bool,
    counted: bool = False,
    figures: bool = False,
    placed: Any = None,
) -> Any:
    """The step under the engine that config.parallel names, not compiled yet, with donated state.

    It takes `(state, split, indices)` if resident, with the number of steps that are taken of `indices` if also
    counted, else `(state, batch)`. It gives the state, or if `figures` that and those of the steps. placed: the
    shardings of the state, whole on every device by default. With `sync_batch_norm` off each device normalises its
    part of the batch by statistics of that part alone, and gradients and running statistics are averaged over them.
    'pmap' is for those who think in devices: each runs the step on its part, so that batches and indices have an axis
    of devices, see `divide`.
    """
    whole, parts = replicated(mesh), by_example(mesh)
    apart = engine == "jit" and mesh.size > 1 and not recipe.sync_batch_norm
    if engine == "pmap" or apart:
        recipe = dataclasses.replace(recipe, axis=parts.spec[0])
    told: Callable[..., Any] = partial(resident_steps, parts=parts if engine == "jit" and not apart else None)
    told = partial(told if resident else step_and_figures, recipe=recipe)

    def step(*arguments: Any) -> Any:
        return told(*arguments) if figures else told(*arguments)[0]

    if engine == "jit":
        placed = whole if placed is None else placed
        inwards = (placed, whole, by_example(mesh, axis=1), *[whole] * counted) if resident else (placed, parts)
        outwards = (placed, whole) if figures else placed
        if apart:
            specs = (whole.spec, *(sharding.spec for sharding in inwards[1:]))
            step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=whole.spec, check_vma=False)
        return jax.jit(step, in_shardings=inwards, out_shardings=outwards, donate_argnums=0)
    axes = (None, None, 1, *[None] * counted) if resident else (None, 0)
    devices = list(mesh.devices.flat)
    return jax.pmap(step, recipe.axis, in_axes=axes, out_axes=None, devices=devices, donate_argnums=0)
