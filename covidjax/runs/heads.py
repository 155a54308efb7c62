"""Heads on the same cached features, trained side by side in one compiled program."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from covidjax import losses, optim, tasks
from covidjax.errors import UserError
from covidjax.freeze.strategies import gradual_epochs
from covidjax.train.features import PrefixFeatures, feature_store
from covidjax.train.inputs import PhaseInputs, make_inputs
from covidjax.train.phases import evaluation_variables, initial_state
from covidjax.train.programs import Programs
from covidjax.train.setup import Job, prepare
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import train_step
from covidjax.weights.start import initial_variables


@dataclasses.dataclass(frozen=True)
class HeadSettings:
    """What sets heads apart; the fields are those of the config."""

    learning_rate: float
    weight_decay: float
    class_weights: str | tuple[float, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Head:
    """A head after training. best_epoch: counted from 1, by config.checkpoint.best; the figures are of that epoch.

    One whose loss was never finite has those of the last epoch.
    """

    settings: HeadSettings
    best_epoch: int
    loss: float
    accuracy: float
    last_loss: float
    last_accuracy: float


@dataclasses.dataclass(frozen=True)
class SettingArrays:
    """The settings that a program takes as numbers: arrays [settings] and [settings, classes]."""

    learning_rate: Any
    weight_decay: Any
    class_weights: Any


jax.tree_util.register_dataclass(SettingArrays, ["learning_rate", "weight_decay", "class_weights"], [])


@dataclasses.dataclass(frozen=True, eq=False)
class Heads:
    """What each head gave on `num_val` validation examples, and the seconds of compilation and of training."""

    heads: tuple[Head, ...]
    num_val: int
    compile_seconds: float
    train_seconds: float
    notes: tuple[str, ...]


def train_heads(
    config: ConfigDict,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    class_weights: Sequence[str | tuple[float, ...]],
    seeds: Sequence[int],
    show: Callable[[str], None],
) -> Heads:
    """Trains a head for every combination, each as a run of its own would, to rounding.

    show: takes a line of progress. Raises UserError where the config does not train from features on the device.
    """
    _check(config, seeds)
    job = prepare(config if config.pretrained else _seeded(config, seeds[0]))
    if job.caching[0].placement != "device":
        why = job.caching[0].note or "they do not fit on the device"
        raise UserError(f"a sweep trains from cached features on the device: {why}")
    phase, by_loss = job.phases[0], job.config.checkpoint.best == "loss"
    features = PrefixFeatures(feature_store(config.dataset.cache_dir), job.mesh, Programs())
    inputs = make_inputs(job, phase, job.variables, features)
    settings = list(itertools.product(learning_rates, weight_decays, class_weights))
    arrays = _setting_arrays(job, settings)
    states = _initial_states(job, seeds, len(settings))
    steps, batch = job.steps_per_epoch, config.batch_size
    epoch = _epoch_program(job)
    began = time.monotonic()
    rows = _rows(inputs, seeds, 0, steps, batch)
    epoch = epoch.lower(states, arrays, inputs.views[0], rows).compile()
    evaluate = _evaluation_program(job).lower(states, inputs.val, job.val_split.labels).compile()
    compile_seconds, began = time.monotonic() - began, time.monotonic()
    val = jax.device_put((inputs.val, job.val_split.labels))
    history = []
    for number in range(phase.last_step // steps):
        states, train_loss = epoch(states, arrays, inputs.views[0], _rows(inputs, seeds, number * steps, steps, batch))
        history.append(jax.device_get(evaluate(states, *val)))  # (loss, accuracy), each [seeds, settings]
        states = _next_epoch(states, train_loss, arrays, phase.optimizer)
        loss, accuracy = history[-1]
        finite = np.isfinite(loss)
        best = np.min(loss, where=finite, initial=np.inf) if by_loss else np.max(accuracy, where=finite, initial=0.0)
        show(f"epoch {number + 1}/{phase.last_step // steps}  best val {config.checkpoint.best} {best:.4f}")
    found = _heads(np.array(history), seeds, settings, by_loss=by_loss)
    notes = (*job.notes, job.caching[0].note, *features.notes)
    return Heads(found, len(job.val_split), compile_seconds, time.monotonic() - began, tuple(dict.fromkeys(notes)))


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
    return ConfigDict({**config.to_dict(), "seed": int(seed)})


def _check(config: ConfigDict, seeds: Sequence[int]) -> None:
    task = tasks.of(config.model.name, config.loss.name)
    if "sweep" not in task.offers:
        raise UserError(
            f"a sweep is of heads that label whole images, and {config.model.name} {task.words}: compare its "
            "settings with launch/study.py and --learning_rates"
        )
    if config.phases or gradual_epochs(config.freeze) is not None:
        raise UserError(
            f"a sweep has one phase, that of the config itself: empty config.phases, and give config.freeze, now "
            f"{config.freeze!r}, one strategy for all epochs"
        )
    if config.weight_decays:
        raise UserError("a sweep gives all kernels one weight decay: empty config.weight_decays")
    if len(set(seeds)) > 1 and not config.pretrained:
        raise UserError(
            "with random initialisation every seed has a frozen prefix, and so features, of its own: give "
            "config.pretrained, or one seed"
        )


def _setting_arrays(job: Job, settings: Sequence[tuple[float, float, Any]]) -> SettingArrays:
    labels, classes = job.task.epoch_targets(job.train_split), job.train_split.classes
    weights = [losses.class_weights(spec, labels, classes) or (1.0,) * len(classes) for _, _, spec in settings]
    kind = job.recipes[0].model.numerics.param_dtype
    return SettingArrays(*(jnp.asarray(values, kind) for values in (*list(zip(*settings, strict=True))[:2], weights)))


def _initial_states(job: Job, seeds: Sequence[int], num_settings: int) -> TrainState:
    """States [seeds, settings, ...] of the stages after the frozen prefix, which alone take part."""
    states = []
    for seed in seeds:
        variables = initial_variables(
            _seeded(job.config, seed), job.recipes[0].model, job.train_split.images.shape[1:]
        ).variables
        states.append(initial_state(_suffix(job), _without_prefix(job, variables), jax.random.key(seed)))
    by_seed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[:, None], (len(seeds), num_settings, *leaf.shape[1:])), by_seed
    )


def _suffix(job: Job) -> Any:
    """The recipe of the only phase, with a plan of the stages after the frozen prefix."""
    recipe = job.recipes[0]
    prefix = recipe.plan.frozen_prefix
    leaves = tuple(leaf for leaf in recipe.plan.leaves if leaf.path.split("/")[0] not in prefix)
    return dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, leaves=leaves))


def _without_prefix(job: Job, variables: Any) -> dict[str, Any]:
    prefix = job.recipes[0].plan.frozen_prefix
    return {
        kind: {stage: leaf for stage, leaf in tree.items() if stage not in prefix} for kind, tree in variables.items()
    }


def _epoch_program(job: Job) -> Any:
    """(states, arrays, split, rows [steps, seeds, batch]) -> states and mean losses [seeds, settings] of the epoch."""
    suffix, config = _suffix(job), job.config
    optimizer = job.phases[0].optimizer

    def one_head(state: TrainState, arrays: SettingArrays, batch: Any) -> TrainState:
        decays = jax.tree.map(lambda decay: arrays.weight_decay, suffix.plan.weight_decays())
        recipe = dataclasses.replace(
            suffix,
            tx=optim.optimizer(optimizer, decays),
            learning_rate=lambda step: suffix.learning_rate(step) * (arrays.learning_rate / optimizer.learning_rate),
            loss=losses.loss_function(config.loss, arrays.class_weights),
        )
        return train_step(state, batch, recipe=recipe)

    settings = jax.vmap(one_head, in_axes=(0, 0, None))  # heads of one seed see the same batches
    heads = jax.vmap(settings, in_axes=(0, None, 0))

    def epoch(states: TrainState, arrays: SettingArrays, split: Any, rows: jax.Array) -> tuple[TrainState, jax.Array]:
        def step(states: TrainState, rows: jax.Array) -> tuple[TrainState, None]:
            return heads(states, arrays, jax.tree.map(lambda array: array[rows], split)), None

        states, _ = lax.scan(step, states, rows)
        return states, states.metrics.loss / states.metrics.steps

    return jax.jit(epoch, donate_argnums=0)


def _evaluation_program(job: Job) -> Any:
    """(states, features, labels [n]) -> loss and accuracy of the validation split, each [seeds, settings]."""
    recipe, loss = _suffix(job), getattr(losses, job.config.loss.name)

    def one_head(state: TrainState, inputs: Any, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        variables = evaluation_variables(state.params, state.batch_stats, state.average, recipe.plan)
        logits = recipe.model.apply(variables, inputs, start=recipe.plan.first_trained)
        return jnp.mean(loss(logits, labels)), jnp.mean(jnp.argmax(logits, -1) == labels)

    return jax.jit(jax.vmap(jax.vmap(one_head, in_axes=(0, None, None)), in_axes=(0, None, None)))


def _next_epoch(states: TrainState, train_loss: jax.Array, arrays: SettingArrays, optimizer: Any) -> TrainState:
    def one_head(state: TrainState, loss: jax.Array, arrays: SettingArrays) -> TrainState:
        own = SimpleNamespace(**{**optimizer.to_dict(), "learning_rate": arrays.learning_rate})
        plateau = optim.plateau_update(state.plateau, loss, own)
        return dataclasses.replace(state, plateau=plateau, metrics=StepMetrics.empty())

    return jax.vmap(jax.vmap(one_head), in_axes=(0, 0, None))(states, train_loss, arrays)


def _rows(inputs: PhaseInputs, seeds: Sequence[int], first_step: int, steps: int, batch_size: int) -> np.ndarray:
    """Rows of the features of an epoch's batches, as the runs of these seeds have them: [steps, seeds, batch] int32."""
    numbers = range(first_step, first_step + steps)
    return np.array([[inputs.rows(step, seed, batch_size) for seed in seeds] for step in numbers], np.int32)


def _heads(
    history: np.ndarray, seeds: Sequence[int], settings: Sequence[tuple[float, float, Any]], *, by_loss: bool
) -> tuple[Head, ...]:
    """history: [epochs, 2, seeds, settings], loss and accuracy."""
    found = []
    for (s, seed), (m, (rate, decay, weights)) in itertools.product(enumerate(seeds), enumerate(settings)):
        loss, accuracy = history[:, 0, s, m], history[:, 1, s, m]
        # Of equal figures the last counts, as in a run of its own; one that is not finite never does.
        order = np.where(np.isfinite(loss), loss if by_loss else -accuracy, np.inf)
        best = len(order) - 1 - int(np.argmin(order[::-1]))
        figures = (float(values[at]) for at in (best, -1) for values in (loss, accuracy))
        found.append(Head(HeadSettings(rate, decay, weights, seed), best + 1, *figures))
    return tuple(found)
