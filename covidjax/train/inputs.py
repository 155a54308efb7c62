"""The inputs of the steps of a phase: images or cached features, from the device or from the host."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from covidjax.data import stream
from covidjax.data.examples import Examples
from covidjax.data.order import batch_rows, steps_per_epoch
from covidjax.mesh import divide, own_rows, place, replicated
from covidjax.train.features import PrefixFeatures
from covidjax.train.job import Job
from covidjax.train.phases import Phase, phase_at
from covidjax.train.step import Recipe, step_inputs
from covidjax.weights.workdir import Trained


@dataclasses.dataclass(frozen=True, eq=False)
class PhaseInputs:
    """The data of a phase.

    views: trees {'image' or 'features', 'label'} of arrays [n, ...] that take turns from epoch to epoch; turns: the
    example of each turn of an epoch, see `Examples.turns`; resident: whether the views live on the devices, all in one
    tree [views * n, ...]. val: the images of the validation split, or their features, which enter the network at stage
    `start` (None: at its beginning).
    """

    views: tuple[Any, ...]
    num_views: int
    turns: np.ndarray
    resident: bool
    val: Any
    start: str | None

    def calls(
        self,
        mesh: Mesh,
        engine: str,
        seed: int,
        batch_size: int,
        steps: tuple[int, int],
        steps_per_call: int,
        pause_every: int = 0,
    ) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """For each call of the compiled program how many steps it takes, and its arguments beside the state.

        steps: the first that is taken, and the first that is not, from where the epochs of the phase are counted;
        steps_per_call, pause_every: see `split_into_calls`. A call of fewer steps is one of the program that takes
        their number as last argument.
        """
        own = own_rows(mesh, batch_size)
        if not self.resident:
            for batch in stream.batches(self.views, self.turns, seed, batch_size, own, *steps):
                yield 1, (divide(batch, mesh, engine),)
            return
        for first, count in split_into_calls(*steps, self.steps_per_epoch(batch_size), steps_per_call, pause_every):
            rows = np.zeros((steps_per_call, batch_size), np.int32)
            rows[:count] = [self.rows(step, seed, batch_size) for step in range(first, first + count)]
            placed = divide(rows[:, own], mesh, engine, axis=1)
            yield count, (self.views[0], placed, *(() if count == steps_per_call else (np.int32(count),)))

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in an epoch."""
        return steps_per_epoch(len(self.turns), batch_size)

    def rows(self, step: int, seed: int, batch_size: int) -> np.ndarray:
        """The rows of the resident data that are a step's batch: [batch] int32."""
        examples, views = batch_rows(seed, step, self.turns, batch_size, self.num_views)
        num_examples = len(jax.tree.leaves(self.views[0])[0]) // self.num_views
        return examples + views * np.int32(num_examples)


def split_into_calls(
    first_step: int, last_step: int, epoch_steps: int, steps_per_call: int, pause_every: int = 0
) -> Iterator[tuple[int, int]]:
    """(first step, number of steps) of each call.

    Calls end at the multiples of `steps_per_call` within each epoch, at its end and, unless that is 0, at the multiples
    of `pause_every` within the run: so a run that was stopped takes the same calls, and pauses cut those calls alone
    that they fall into.
    """
    step = first_step
    while step < last_step:
        position = step % epoch_steps
        ends = [epoch_steps - position, steps_per_call - position % steps_per_call, last_step - step]
        if pause_every:
            ends.append(pause_every - step % pause_every)
        yield step, min(ends)
        step += min(ends)


def make_inputs(job: Job, phase: Phase, variables: Any, prefix: PrefixFeatures) -> PhaseInputs:
    """The data of a phase. variables: {'params', 'batch_stats'} with which it begins.

    Where features are cached, they are what the frozen prefix makes of the images with these weights.
    """
    recipe, caching, resident = job.recipes[phase.index], job.caching[phase.index], job.resident(phase)
    examples = job.examples[phase.index]
    images, targets = examples.images, job.task.targets(examples)
    val, start = job.val_split.images, None
    if caching.validation:
        val, start = prefix.features(recipe, variables, val), recipe.plan.first_trained
    views: tuple[Any, ...] = ({"image": images, "label": targets},)
    if recipe.cached:
        views = tuple(
            {
                "features": prefix.features(recipe, variables, images, number),
                "label": prefix.targets(recipe, targets, number),
            }
            for number in (range(caching.views) if recipe.augments else (None,))
        )
    if resident:
        together = views[0] if len(views) == 1 else jax.tree.map(lambda *parts: np.concatenate(parts), *views)
        views = (place(together, replicated(job.mesh)),)
    elif caching.placement == "host":
        views = jax.tree.map(np.array, views)
    return PhaseInputs(views, caching.views, examples.turns(), resident, val, start)


def first_batch(
    recipe: Recipe, examples: Examples, targets: np.ndarray, seed: int, batch_size: int
) -> tuple[np.ndarray, Any]:
    """The inputs of the network in the first step of a run, and the targets that go with them.

    -> [batch, height, width, network's channels] float32, and labels [batch], `data.mix.Mixed` ones, or masks, moved
    with their images.
    """
    rows, _ = batch_rows(seed, 0, examples.turns(), batch_size)
    return augmented_batch(recipe, {"image": examples.images[rows], "label": targets[rows]}, seed)


def augmented_batch(recipe: Recipe, batch: dict[str, np.ndarray], seed: int) -> tuple[np.ndarray, Any]:
    """A batch of the first step of a run as the network takes it. The result is that of `first_batch`.

    batch: {'image': [batch, height, width, channels] uint8, 'label': [batch] or [batch, height, width]}
    """
    augment_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))  # as in `train.step.step_keys`

    @jax.jit
    def take(key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        images, targets = step_inputs(key, batch, dataclasses.replace(recipe, cached=False))
        inputs = recipe.preprocessing(images)
        return (inputs[0] if recipe.preprocessing.inside else inputs).astype(jnp.float32), targets

    inputs, targets = take(augment_key, batch)
    return np.asarray(inputs), jax.tree.map(np.asarray, targets)


def final_inputs(job: Job, trained: Trained, prefix: PrefixFeatures) -> tuple[Any, str | None]:
    """Cached features of the validation split for the network of a checkpoint, and the stage that takes them.

    (None, None) where there are none, or the prefix ran in another precision than the network has.
    """
    phase = phase_at(job.phases, trained.step)
    recipe = job.recipes[phase.index]
    if not job.caching[phase.index].validation or recipe.prefix.numerics.dtype != recipe.model.numerics.dtype:
        return None, None
    return prefix.features(recipe, trained.variables, job.val_split.images), recipe.plan.first_trained
