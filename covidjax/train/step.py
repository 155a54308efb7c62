"""The train step: one pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from covidjax import ops
from covidjax.data.augment import Augmentation, augment
from covidjax.data.mix import Mixed, blended, mix
from covidjax.freeze.plan import FreezePlan
from covidjax.losses import correct_share
from covidjax.models.layers import Staged, span
from covidjax.models.preprocessing import Preprocessing
from covidjax.train import loss_scale
from covidjax.train.state import TrainState

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The parts of a step, static and hashable; each phase of a run has one and compiles its own step.

    learning_rate: the schedule, from the run's step schedule_start on: where the phase begins, or before it; momentum:
    that of the optimizer's first decay, if it has one, see `optim.momentum_schedule`.
    loss, correct: (logits [batch, classes], labels [batch]) -> losses [batch], and float32 [batch] that is reported
    beside the loss, such as whether the answer is right.
    prefix: the model in the compute dtype of its frozen prefix.
    cached: whether a batch brings what the frozen prefix gives instead of images.
    remat: what the backward pass computes again instead of keeping it: 'none', 'lean' (normalisations and ReLUs, all
    but the outputs of convolutions and statistics), or all activations of these stages. 'auto', until it is decided by
    the programs, is 'none'.
    axis: the axis that pmap maps over devices; sync_batch_norm: whether batch statistics are those of all of them.
    skip_nonfinite: whether a step whose loss or gradient is not finite is left out.
    """

    model: Staged
    prefix: Staged
    plan: FreezePlan
    tx: optax.GradientTransformationExtraArgs
    learning_rate: Callable[[Any], Any]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    augmentation: Augmentation
    preprocessing: Preprocessing
    correct: Callable[[jax.Array, jax.Array], jax.Array] = correct_share
    momentum: Callable[[Any], Any] | None = None
    schedule_start: int = 0
    accumulation_steps: int = 1
    cached: bool = False
    remat: str | tuple[str, ...] = "none"
    axis: str | None = None
    sync_batch_norm: bool = True
    skip_nonfinite: bool = False

    @property
    def augments(self) -> bool:
        """Whether images are changed at random."""
        return self.augmentation != Augmentation()


def train_step(state: TrainState, batch: Batch, *, recipe: Recipe) -> TrainState:
    """One optimizer step. Gradients exist for the trainable leaves only, and so does all that looks at them.

    batch: {'image': [batch, height, width, channels] uint8, or 'features': what `run_prefix` gives, a tree of arrays
    [batch, ...], where recipe.cached; 'label': [batch] int32, class ids of pixels [batch, height, width], or findings
    [batch, findings]}.
    """
    plan = recipe.plan
    augment_key, dropout_key = step_keys(state, recipe)
    trainable, frozen = plan.split(state.params)
    inputs, labels = step_inputs(augment_key, batch, recipe)

    def loss(trainable: Any, batch_stats: Any, inputs: Any, labels: jax.Array | Mixed, key: jax.Array) -> Any:
        params = plan.merge(trainable, frozen)
        logits, batch_stats = train_forward(recipe, params, batch_stats, inputs, key)
        correct = jnp.sum(blended(recipe.correct, logits, labels))
        return jnp.mean(blended(recipe.loss, logits, labels)), (batch_stats, correct)

    gradient = accumulated(loss_scale.value_and_grad(loss, state.loss_scale), recipe.accumulation_steps)
    (value, (batch_stats, correct)), grads = gradient(trainable, state.batch_stats, inputs, labels, dropout_key)
    value, batch_stats, correct, grads = over_devices(recipe.axis, value, batch_stats, correct, grads)
    grads = laid_out(grads)
    momentum = {} if recipe.momentum is None else {"momentum": recipe.momentum(state.step - recipe.schedule_start)}
    direction, opt_state = recipe.tx.update(grads, state.opt_state, trainable, **momentum)
    rate = learning_rate(state, recipe)
    trainable = jax.tree.map(
        lambda p, d, factor: p - (rate * factor).astype(p.dtype) * d, trainable, direction, plan.rates()
    )
    average = moving_average(state, recipe, plan.averaged(trainable, batch_stats))
    stepped = dataclasses.replace(
        state,
        step=state.step + 1,
        params=plan.merge(trainable, frozen),
        batch_stats=batch_stats,
        opt_state=opt_state,
        average=average,
        metrics=state.metrics.add(state.step, value, optax.tree.norm(grads), correct),
    )
    if recipe.skip_nonfinite:
        stepped = only_counted(state, stepped, jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads)))
    return skip_overflow(state, stepped, grads)


def laid_out(grads: Any) -> Any:
    """The gradients; on a GPU as whole arrays in the layout of the parameters before the optimizer begins.

    There XLA turns kernels round for its convolutions. It would turn their gradients back inside of the optimizer's
    operations, which then cannot write in place: every kernel and its moments would be copied once more.
    """

    def in_place(grads: Any) -> Any:
        rows = jax.tree.map(lambda g: with_layout_constraint(g, Layout(tuple(range(g.ndim)))), grads)
        return lax.optimization_barrier(rows)

    return lax.platform_dependent(grads, cuda=in_place, default=lambda grads: grads)


def moving_average(state: TrainState, recipe: Recipe, live: Any) -> Any:
    """The average of the trained parameters and statistics after a step that left them as `live`.

    Its decay is at most (1 + n) / (10 + n) after n steps of the phases that share a schedule, so that an average of few
    steps is not one of the beginning (TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def moved(decay: float, average: jax.Array, value: jax.Array) -> jax.Array:
        count = (state.step - recipe.schedule_start).astype(average.dtype)
        keep = jnp.minimum(decay, (1 + count) / (10 + count))
        return keep * average + (1 - keep) * value

    return jax.tree.map(moved, recipe.plan.ema_decays(), state.average, live)


def skip_overflow(before: TrainState, stepped: TrainState, grads: Any) -> TrainState:
    """`stepped`, or no more than its count where loss scaling finds that the gradients overflowed."""
    if before.loss_scale is None:
        return stepped
    scale, counts = before.loss_scale.after(grads)
    return dataclasses.replace(only_counted(before, stepped, counts), loss_scale=scale)


def only_counted(before: TrainState, stepped: TrainState, counts: jax.Array) -> TrainState:
    """`stepped` where the step counts, else the state before it, but for the number of steps."""
    names = ("params", "batch_stats", "opt_state", "average", "metrics")
    former, new = ({name: getattr(state, name) for name in names} for state in (before, stepped))
    kept = jax.tree.map(partial(jnp.where, counts), new, former)
    return dataclasses.replace(stepped, **kept)


def step_keys(state: TrainState, recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """The step's keys of augmentation, which knows of devices itself, and of dropout, which differs between them."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    if recipe.axis is not None:
        dropout_key = jax.random.fold_in(dropout_key, lax.axis_index(recipe.axis))
    return augment_key, dropout_key


def learning_rate(state: TrainState, recipe: Recipe) -> jax.Array:
    """The rate of the state's next step, before the factors of `lr_scale`."""
    return recipe.learning_rate(state.step - recipe.schedule_start) * state.plateau.scale


def step_inputs(key: jax.Array, batch: Batch, recipe: Recipe) -> tuple[Any, jax.Array | Mixed]:
    """What a step trains on, images or features, and the labels, which are `Mixed` where images are."""
    if recipe.cached:
        return batch["features"], batch["label"]
    images, labels = augmented(key, batch, recipe)
    if not recipe.augmentation.mixes:
        return images, labels
    return mix(jax.random.fold_in(key, 2), images, labels, recipe.augmentation, recipe.axis)


def augmented(key: jax.Array, batch: Batch, recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """The images of a batch in floating point and the labels; both changed at random, where labels are masks."""
    images, labels = batch["image"].astype(recipe.model.numerics.param_dtype), batch["label"]
    masks = labels if labels.ndim == 3 else None
    images, masks = augment(key, images, recipe.augmentation, masks, recipe.axis)
    return images, labels if masks is None else masks


def run_prefix(recipe: Recipe, variables: Any, images: jax.Array) -> Any:
    """The inputs of the first trained stage: the outputs of the frozen prefix, run as inference in its own dtype.

    variables: {'params', 'batch_stats'} of the prefix at least; images: [batch, height, width, channels], values
    0..255 -> a tree of arrays [batch, ...].
    """
    first = recipe.plan.first_trained
    features = recipe.prefix.apply(variables, recipe.preprocessing(images), stop=first)
    return recipe.prefix.apply({}, features, first, method="reduced")


def train_forward(recipe: Recipe, params: Any, batch_stats: Any, inputs: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    """Logits and new statistics. The frozen prefix runs as inference, and its statistics pass through untouched.

    inputs: images [batch, height, width, channels], values 0..255, or the features of `run_prefix` where
    recipe.cached -> logits [batch, classes].
    """
    plan, stages = recipe.plan, span(recipe.model.stages, recipe.plan.first_trained)
    flowing = inputs if recipe.cached else run_prefix(recipe, {"params": params, "batch_stats": batch_stats}, inputs)
    for stage, stop in zip(stages, (*stages[1:], None), strict=True):
        forward: Callable[..., Any] = partial(
            recipe.model.apply,
            train=True,
            start=stage,
            stop=stop,
            batch_norm_stages=plan.batch_norm_stages,
            batch_norm_axis=recipe.axis if recipe.sync_batch_norm else None,
            mutable=["batch_stats"],
        )
        if recipe.remat == "lean":
            forward = jax.checkpoint(forward, policy=jax.checkpoint_policies.save_only_these_names(*ops.KEPT))
        elif isinstance(recipe.remat, tuple) and stage in recipe.remat:
            forward = jax.checkpoint(forward)
        own = {"params": {stage: params.get(stage, {})}, "batch_stats": {stage: batch_stats.get(stage, {})}}
        flowing, updated = forward(own, flowing, rngs={"dropout": key})
        if stage in plan.batch_norm_stages:
            batch_stats = {**batch_stats, stage: updated["batch_stats"][stage]}
    return flowing, batch_stats


def over_devices(axis: str | None, value: jax.Array, batch_stats: Any, correct: jax.Array, grads: Any) -> Any:
    """The mean over the devices of a mapped axis, and of `correct` the sum; jit has these of the whole batch."""
    if axis is None:
        return value, batch_stats, correct, grads
    value, batch_stats, grads = lax.pmean((value, batch_stats, grads), axis)
    return value, batch_stats, lax.psum(correct, axis), grads


def accumulated(gradient: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """The mean of loss and gradients over `steps` equal parts of the batch, one after the other.

    The statistics of BatchNorm pass from part to part. Example i is in part i % steps, so that a batch that is
    sharded over devices stays where it is.
    """
    if steps == 1:
        return gradient

    def parts(array: jax.Array) -> jax.Array:
        return array.reshape(len(array) // steps, steps, *array.shape[1:]).swapaxes(0, 1)

    def over_parts(trainable: Any, batch_stats: Any, inputs: Any, labels: Any, key: jax.Array) -> Any:
        def one(carry: Any, part: Any) -> Any:
            total, batch_stats = carry
            (value, (batch_stats, correct)), grads = gradient(trainable, batch_stats, *part)
            return (jax.tree.map(jnp.add, total, (value, correct, grads)), batch_stats), None

        every = (*jax.tree.map(parts, (inputs, labels)), jax.random.split(key, steps))
        first = jax.tree.map(lambda array: array[0], every)
        (value, (_, correct)), grads = jax.eval_shape(gradient, trainable, batch_stats, *first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, correct, grads))
        ((value, correct, grads), batch_stats), _ = lax.scan(one, (zeros, batch_stats), every)
        return (value / steps, (batch_stats, correct)), jax.tree.map(lambda g: g / steps, grads)

    return over_parts
