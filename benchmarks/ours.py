"""covidjax's own step, as a run compiles it, on synthetic data; imports jax, flax, optax and numpy only."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from benchmarks import work
from benchmarks.case import Case
from benchmarks.jax_subject import JaxSubject, inference_subject, parameter_counts, train_subject
from covidjax import losses, models, optim
from covidjax.data.augment import Augmentation
from covidjax.freeze import flops
from covidjax.freeze.plan import make_plan
from covidjax.freeze.strategies import lora_rank
from covidjax.mesh import by_example, make_mesh, replicated
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.ops.choose import choose
from covidjax.train import parallel
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe, train_step

OPTIMIZER = SimpleNamespace(
    name="adam",
    beta_1=0.9,
    beta_2=0.999,
    learning_rate=work.LEARNING_RATE,
    schedule="constant",
    clip_norm=0.0,
    weight_decay=0.0,
)
LOSS = SimpleNamespace(name="softmax_cross_entropy", label_smoothing=0.0)


def make_model(case: Case) -> Staged:
    """The network of a case, with the arrangement that all implementations have."""
    section = SimpleNamespace(
        name=case.model,
        width=work.width(case),
        num_blocks=work.CNN_BLOCKS,
        blocks=len(work.VGG_BLOCKS),
        head="paper",
        dropout=0.0,
        pooling="average",
        normalised_features=False,
        arrangement="torchvision",
        normalisation="batch",
        upsampling="transposed",
        attention=False,
        decoder="unet",
        stochastic_depth=0.0,
    )
    operations = choose(case.ops)
    classes, rank = work.network(case.model).classes, lora_rank(case.freeze)
    return models.build(section, classes, case.precision, native=operations.native, lora_rank=rank)


def make_variables(case: Case, seed: int = 0) -> dict[str, Any]:
    """Fresh weights of a case's network: {'params', 'batch_stats'}."""
    model, net = make_model(case), work.network(case.model)
    images = jnp.zeros((1, case.image_size, case.image_size, net.channels), model.numerics.param_dtype)
    return {"batch_stats": {}, **jax.jit(model.init)(jax.random.key(seed), images)}


def make_preprocessing(case: Case) -> Preprocessing:
    """The normalisation of `benchmarks.work`."""
    channels = work.network(case.model).channels
    return Preprocessing(work.SCALE, (work.MEAN,) * channels, (work.STD,) * channels)


def make_recipe(case: Case, variables: Any) -> Recipe:
    """What the step of a case does."""
    model = make_model(case)
    return Recipe(
        model=model,
        prefix=model,
        plan=make_plan(case.freeze, variables, model.stages),
        tx=optim.optimizer(OPTIMIZER),
        learning_rate=optim.learning_rate_schedule(OPTIMIZER, 1, 1),
        loss=losses.loss_function(LOSS, None),
        augmentation=Augmentation(),
        preprocessing=make_preprocessing(case),
    )


def make_state(recipe: Recipe, variables: Any) -> TrainState:
    """The state before the first step; the arrays are copies, since the step is given them to keep."""
    variables = jax.tree.map(jnp.array, variables)
    trainable, _ = recipe.plan.split(variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=recipe.tx.init(trainable),
        average=None,
        plateau=optim.plateau_init(),
        loss_scale=None,
        metrics=StepMetrics.empty(),
    )


def build(case: Case, variables: Any = None) -> JaxSubject:
    """A `case.Subject`. variables: start weights {'params', 'batch_stats'}; None: fresh ones."""
    work.check(case)
    variables = make_variables(case) if variables is None else variables
    recipe, mesh = make_recipe(case, variables), make_mesh(case.batch_size)
    images, labels = work.batch(case)
    state = jax.device_put(make_state(recipe, variables), replicated(mesh))
    batch = jax.device_put({"image": images, "label": labels}, by_example(mesh))
    trainable, _ = recipe.plan.split(state.params)
    operations = "native" if recipe.model.numerics.native else "xla"
    if case.mode == "inference":
        counts = {**parameter_counts(state.params, (), ()), "ops": operations}
        forward = jax.jit(lambda variables, images: forward_pass(recipe, variables, images))
        restored = {"params": state.params, "batch_stats": state.batch_stats}
        counts["flops"] = flops.count(forward, restored, batch["image"])
        return inference_subject(forward, restored, batch["image"], counts)
    counts = {**parameter_counts(state.params, trainable, state.opt_state), "ops": operations}
    counts["flops"] = flops.count(partial(train_step, recipe=recipe), state, batch)
    return train_subject(parallel.mapped_step(recipe, mesh, resident=False), state, (batch,), counts)


def forward_pass(recipe: Recipe, variables: Any, images: jax.Array) -> jax.Array:
    """images: [batch, height, width, channels] uint8 -> logits, as `covidjax.evaluate` computes them."""
    inputs = recipe.preprocessing(images.astype(recipe.model.numerics.param_dtype))
    logits: jax.Array = recipe.model.apply(variables, inputs)  # type: ignore[assignment]
    return logits


def loss_and_gradients(case: Case, variables: Any) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the first step, and the gradients of what trains, by path.

    They are the step's own: its optimizer does nothing but remember what it is given.
    """
    remember = optax.GradientTransformation(
        optax.tree.zeros_like, lambda gradients, state, params=None: (optax.tree.zeros_like(gradients), gradients)
    )
    recipe = dataclasses.replace(make_recipe(case, variables), tx=remember)
    images, labels = work.batch(case)
    after = jax.jit(partial(train_step, recipe=recipe))(
        make_state(recipe, variables), {"image": images, "label": labels}
    )
    flat = traverse_util.flatten_dict(after.opt_state, sep="/")
    gradients = {path: np.asarray(value) for path, value in flat.items() if isinstance(value, jax.Array)}
    return float(after.metrics.loss), gradients
