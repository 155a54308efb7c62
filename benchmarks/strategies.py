"""covidjax under a freeze strategy: one step, from images or from cached features, or an epoch of resident data."""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ours, work
from benchmarks.case import Case
from benchmarks.jax_subject import JaxSubject, parameter_counts, train_subject
from covidjax.errors import UserError
from covidjax.freeze import flops
from covidjax.freeze.plan import make_plan
from covidjax.freeze.strategies import split_cached
from covidjax.freeze.table import freeze_table
from covidjax.mesh import by_example, make_mesh, replicated
from covidjax.train import parallel
from covidjax.train.step import Recipe, run_prefix, train_step

BUILDER = "benchmarks.strategies:build"
EPOCH_IMAGES = "epoch_images"


def check(case: Case) -> None:
    """Raises UserError for a strategy that does not fit the network, or has nothing to cache; computes nothing."""
    work.check(case)
    strategy, cached = split_cached(case.freeze)
    variables = jax.eval_shape(lambda: ours.make_variables(dataclasses.replace(case, freeze=strategy)))
    plan = make_plan(strategy, variables, work.network(case.model).stages)
    if cached and not plan.frozen_prefix:
        raise UserError(f"{case.freeze}: the first stage trains, so there are no features to cache")


def build(case: Case) -> JaxSubject:
    """A `case.Subject` of a strategy; 'cached:<strategy>' starts from the outputs of its frozen prefix.

    options: epoch_images, 0 for single steps; else a step of the subject is an epoch over so many images.
    facts has predicted_flops beside what all have: those of one optimizer step by the plan table, which counts no
    optimizer; feature_bytes and feature_pass_seconds of all the images of a cached case, compilation left out.
    """
    strategy, cached = split_cached(case.freeze)
    case = dataclasses.replace(case, freeze=strategy)
    if case.mode == "inference":
        return ours.build(case)
    work.check(case)
    variables = ours.make_variables(case)
    recipe = dataclasses.replace(ours.make_recipe(case, variables), cached=cached)
    images, labels = _data(case)
    facts: dict[str, Any] = {"predicted_flops": _predicted_flops(case, recipe, variables)}
    data: dict[str, Any] = {"image": images, "label": labels}
    if cached:
        features, facts["feature_pass_seconds"] = _features(case, recipe, variables, images)
        facts["feature_bytes"] = sum(int(leaf.nbytes) for leaf in jax.tree.leaves(features))
        data = {"features": features, "label": labels}
    subject = _epoch(case, recipe, variables, data) if _epoch_images(case) else _step(case, recipe, variables, data)
    return dataclasses.replace(subject, known={**subject.known, **facts})


def _epoch_images(case: Case) -> int:
    return int(dict(case.options).get(EPOCH_IMAGES, 0))


def _data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return work.batch(dataclasses.replace(case, batch_size=_epoch_images(case) or case.batch_size))


def _predicted_flops(case: Case, recipe: Recipe, variables: Any) -> float:
    shape = (case.batch_size, case.image_size, case.image_size, work.network(case.model).channels)
    images = jax.eval_shape(recipe.preprocessing, jax.ShapeDtypeStruct(shape, recipe.model.numerics.param_dtype))
    shapes = jax.eval_shape(lambda: variables)
    rows, _ = freeze_table(recipe.plan, recipe.model, shapes, images, recipe.tx, work.LEARNING_RATE)
    left_out = recipe.plan.frozen_prefix if recipe.cached else ()
    return sum(row["forward_flops"] + row["backward_flops"] for row in rows if row["stage"] not in left_out)


def _features(case: Case, recipe: Recipe, variables: Any, images: np.ndarray) -> tuple[Any, float]:
    """The frozen prefix's outputs for all images, in batches, on the device; and the seconds that took."""

    def prefix(variables: Any, images: jax.Array) -> Any:
        return run_prefix(recipe, variables, images.astype(recipe.model.numerics.param_dtype))

    batches = [jnp.asarray(images[i : i + case.batch_size]) for i in range(0, len(images), case.batch_size)]
    compiled = jax.jit(prefix).lower(variables, batches[0]).compile()
    began = time.perf_counter()
    parts = [compiled(variables, batch) for batch in batches]
    features = jax.block_until_ready(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
    return features, time.perf_counter() - began


def _step(case: Case, recipe: Recipe, variables: Any, data: dict[str, Any]) -> JaxSubject:
    mesh = make_mesh(case.batch_size)
    state, counts = _state(recipe, variables, mesh)
    batch = jax.device_put(data, by_example(mesh))
    counts["flops"] = flops.count(partial(train_step, recipe=recipe), state, batch)
    return train_subject(parallel.mapped_step(recipe, mesh, resident=False), state, (batch,), counts)


def _epoch(case: Case, recipe: Recipe, variables: Any, data: dict[str, Any]) -> JaxSubject:
    """All steps of an epoch over data that live on the device; from cached features in one call, as a run does."""
    mesh, count = make_mesh(case.batch_size), _epoch_images(case) // case.batch_size
    state, counts = _state(recipe, variables, mesh)
    split = jax.device_put(data, replicated(mesh))
    order = np.random.default_rng(0).permutation(_epoch_images(case)).astype(np.int32)
    indices = order[: count * case.batch_size].reshape(count, case.batch_size)
    calls = [indices] if recipe.cached else np.split(indices, count)
    placed = [jax.device_put(call, by_example(mesh, axis=1)) for call in calls]
    counts["flops"] = flops.count(partial(parallel.resident_steps, recipe=recipe), state, split, placed[0])
    subject = train_subject(parallel.mapped_step(recipe, mesh, resident=True), state, (split, placed[0]), counts)
    step = subject.step

    def epoch(state: Any, split: Any) -> Any:
        for call in placed:
            state = step(state, split, call)
        return state

    return dataclasses.replace(subject, step=epoch, inputs=(split,))


def _state(recipe: Recipe, variables: Any, mesh: Any) -> tuple[Any, dict[str, Any]]:
    state = jax.device_put(ours.make_state(recipe, variables), replicated(mesh))
    trainable, _ = recipe.plan.split(state.params)
    return state, parameter_counts(state.params, trainable, state.opt_state)
