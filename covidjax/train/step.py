"""The train step: one pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from covidjax.data.augment import Augmentation, augment
from covidjax.freeze import FreezePlan
from covidjax.models.layers import Staged
from covidjax.preprocessing import Preprocessing
from covidjax.train.state import TrainState

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step does, static and hashable; each phase of a run has one and compiles its own step.

    learning_rate: schedule from the step within the phase; first_step: the run's step at which the phase begins.
    loss: (logits [batch, classes], labels [batch]) -> losses [batch].
    """

    model: Staged
    plan: FreezePlan
    tx: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    augmentation: Augmentation
    preprocessing: Preprocessing
    first_step: int = 0
    accumulation_steps: int = 1
    ema_decay: float = 0.0


def train_step(state: TrainState, batch: Batch, *, recipe: Recipe) -> TrainState:
    """One optimizer step. Gradients exist for the trainable leaves only, and so does all that looks at them.

    batch: {'image': [batch, height, width, channels] uint8, 'label': [batch] int32}.
    """
    plan = recipe.plan
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    trainable, frozen = plan.split(state.params)
    images = batch["image"].astype(recipe.model.param_dtype)
    images, _ = augment(augment_key, images, recipe.augmentation)

    def loss(trainable: Any, batch_stats: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        params = plan.merge(trainable, frozen)
        logits, batch_stats = train_forward(recipe, params, batch_stats, recipe.preprocessing(images), key)
        correct = jnp.sum(jnp.argmax(logits, -1) == labels)
        return jnp.mean(recipe.loss(logits, labels)), (batch_stats, correct)

    gradient = accumulated(jax.value_and_grad(loss, has_aux=True), recipe.accumulation_steps)
    (value, (batch_stats, correct)), grads = gradient(trainable, state.batch_stats, images, batch["label"], dropout_key)
    direction, opt_state = recipe.tx.update(grads, state.opt_state, trainable)
    rate = learning_rate(state, recipe)
    trainable = jax.tree.map(
        lambda p, d, factor: p - (rate * factor).astype(p.dtype) * d, trainable, direction, plan.rates()
    )
    live = averaged_part(plan, trainable, batch_stats)
    keep = recipe.ema_decay
    average = jax.tree.map(lambda a, v: keep * a + (1 - keep) * v, state.average, live) if keep else None
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=plan.merge(trainable, frozen),
        batch_stats=batch_stats,
        opt_state=opt_state,
        average=average,
        metrics=state.metrics.add(state.step, value, optax.tree.norm(grads), correct, len(images)),
    )


def learning_rate(state: TrainState, recipe: Recipe) -> jax.Array:
    """The rate of the state's next step, before the factors of `lr_scale`."""
    return recipe.learning_rate(state.step - recipe.first_step) * state.plateau.scale


def averaged_part(plan: FreezePlan, trainable: Any, batch_stats: Any) -> dict[str, Any]:
    """What a moving average follows. Averaged weights need averaged statistics: those of the last step do not fit."""
    return {"params": trainable, "batch_stats": {stage: batch_stats[stage] for stage in plan.batch_norm_stages}}


def train_forward(
    recipe: Recipe, params: Any, batch_stats: Any, images: jax.Array, key: jax.Array
) -> tuple[jax.Array, Any]:
    """Logits and new statistics. The frozen prefix runs as inference, and its statistics pass through untouched.

    images: [batch, height, width, channels], preprocessed -> logits [batch, classes].
    """
    plan, variables = recipe.plan, {"params": params, "batch_stats": batch_stats}
    features = recipe.model.apply(variables, images, stop=plan.first_trained)
    logits, updated = recipe.model.apply(
        variables,
        features,
        train=True,
        start=plan.first_trained,
        batch_norm_stages=plan.batch_norm_stages,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    live = {stage: updated["batch_stats"][stage] for stage in plan.batch_norm_stages}
    return logits, {**batch_stats, **live}


def accumulated(gradient: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """The mean of loss and gradients over `steps` equal parts of the batch, one after the other.

    The statistics of BatchNorm pass from part to part. Example i is in part i % steps, so that a batch that is
    sharded over devices stays where it is.
    """
    if steps == 1:
        return gradient

    def parts(array: jax.Array) -> jax.Array:
        return array.reshape(len(array) // steps, steps, *array.shape[1:]).swapaxes(0, 1)

    def over_parts(trainable: Any, batch_stats: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        def one(carry: Any, part: Any) -> Any:
            total, batch_stats = carry
            (value, (batch_stats, correct)), grads = gradient(trainable, batch_stats, *part)
            return (jax.tree.map(jnp.add, total, (value, correct, grads)), batch_stats), None

        every = (parts(images), parts(labels), jax.random.split(key, steps))
        first = jax.tree.map(lambda array: array[0], every)
        (value, (_, correct)), grads = jax.eval_shape(gradient, trainable, batch_stats, *first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, correct, grads))
        ((value, correct, grads), batch_stats), _ = lax.scan(one, (zeros, batch_stats), every)
        return (value / steps, (batch_stats, correct)), jax.tree.map(lambda g: g / steps, grads)

    return over_parts
