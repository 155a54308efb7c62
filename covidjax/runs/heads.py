"""Heads on the same cached features, trained side by side in one compiled program."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
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
from covidjax.metrics import classification
from covidjax.train.features import PrefixFeatures, feature_store
from covidjax.train.inputs import make_inputs
from covidjax.train.job import Job
from covidjax.train.phases import evaluation_variables, initial_state
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe, train_step
from covidjax.weights.start import initial_variables

Settings = tuple[jax.Array, jax.Array, Any]  # arrays over heads, as `_setting_arrays` has them


@dataclasses.dataclass(frozen=True)
class HeadSettings:
    """What sets heads apart; the fields are those of the config."""

    learning_rate: float
    weight_decay: float
    class_weights: str | tuple[float, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Head:
    """A head after training.

    best_epoch: counted from 1, by `config.checkpoint.best`; of equal ones the last, as in a run of its own
    best, last: the validation figures of that epoch and of the last: 'loss' and the task's `step_figure`. A head whose
        loss was never finite has those of the last epoch in both.
    interval: 95 %, of the best `step_figure`, as an evaluation has it
    """

    settings: HeadSettings
    best_epoch: int
    best: Mapping[str, float]
    last: Mapping[str, float]
    interval: list[float] | None = None


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
    show: Callable[[str], object],
) -> Heads:
    """Trains a head for every combination, each as a run of its own would, to rounding.

    show: takes a line of progress. Raises UserError where the config does not train from features on the device.
    """
    _check(config, seeds)
    job = prepare(config if config.pretrained else _seeded(config, seeds[0]))
    if not job.recipes[0].plan.frozen_prefix:
        stages = job.recipes[0].model.stages
        views = job.recipes[0].augments and not config.feature_views
        more = "; and --config.feature_views=K, as the images are augmented: K fixed views of each" if views else ""
        raise UserError(
            f"a sweep trains heads on one frozen prefix, and config.freeze {config.freeze!r} leaves the first stage to "
            f"train: give --config.freeze=backbone, which trains {stages[-1]} alone, or until:<stage>, with a stage of "
            f"{', '.join(stages[:-1])}{more}"
        )
    if job.caching[0].placement != "device":
        why = job.caching[0].note or "they do not fit on the device"
        raise UserError(f"a sweep trains from cached features on the device: {why}")
    features = PrefixFeatures(feature_store(config.dataset.cache_dir), job.mesh, Programs())
    inputs = make_inputs(job, job.phases[0], job.variables, features)
    by, steps = config.checkpoint.best, job.steps_per_epoch
    num_epochs = job.phases[0].last_step // steps

    def rows(epoch: int) -> np.ndarray:
        """Rows of the features of an epoch's batches, as the runs of these seeds have them: [steps, seeds, batch]."""
        numbers = range(epoch * steps, (epoch + 1) * steps)
        return np.array([[inputs.rows(step, seed, config.batch_size) for seed in seeds] for step in numbers], np.int32)

    recipe = _suffix(job.recipes[0])
    combinations = list(itertools.product(learning_rates, weight_decays, class_weights))
    settings = _setting_arrays(job, combinations)
    states = _initial_states(job, recipe, seeds, len(combinations))
    data = jax.device_put((inputs.views[0], {"features": inputs.val, "label": job.task.targets(job.val_split)}))
    began = time.monotonic()
    program = _epoch_program(job, recipe).lower(states, settings, *data, rows(0)).compile()
    compile_seconds, began = time.monotonic() - began, time.monotonic()
    history = []  # of figures [seeds, settings]
    for epoch in range(num_epochs):
        states, figures = program(states, settings, *data, rows(epoch))
        history.append(jax.device_get(figures))
        best = job.task.best[by] * np.max(_scores(history[-1], by, job.task.best[by]))
        show(f"epoch {epoch + 1}/{num_epochs}  best val {by} {best:.4f}")
    train_seconds = time.monotonic() - began
    by_epoch = {name: np.stack([figures[name] for figures in history]) for name in ("loss", job.task.step_figure)}
    last_best = num_epochs - 1 - np.argmax(_scores(by_epoch, by, job.task.best[by])[::-1], axis=0)
    right = np.stack([figures["correct"] for figures in history])  # [epochs, seeds, settings, n]
    right = np.take_along_axis(right, last_best[None, :, :, None], axis=0)[0].reshape(-1, len(job.val_split))
    intervals = iter(classification.accuracy_intervals(right, job.val_split))
    heads = []
    for (s, seed), (m, combination) in itertools.product(enumerate(seeds), enumerate(combinations)):
        at = int(last_best[s, m])
        best, last = ({name: float(v[epoch, s, m]) for name, v in by_epoch.items()} for epoch in (at, -1))
        heads.append(Head(HeadSettings(*combination, seed), at + 1, best, last, next(intervals)))
    notes = tuple(dict.fromkeys((*job.notes, job.caching[0].note, *features.notes)))
    return Heads(tuple(heads), len(job.val_split), compile_seconds, train_seconds, notes)


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
    return ConfigDict({**config.to_dict(), "seed": int(seed)})


def _check(config: ConfigDict, seeds: Sequence[int]) -> None:
    task = tasks.of(config.model.name, config.loss.name)
    if "sweep" not in task.offers:
        raise UserError(
            f"a sweep is of heads that label whole images, and {config.model.name} {task.words}: compare its "
            "settings with launch/study.py and --learning_rates"
        )
    known = [name for name in ("loss", task.step_figure) if name in task.best]
    if config.checkpoint.best not in known:
        raise UserError(
            f"a sweep measures {' and '.join(known)} alone, and config.checkpoint.best is "
            f"{config.checkpoint.best!r}: set it to one of {', '.join(known)}"
        )
    if config.early_stopping.patience:
        raise UserError("a sweep trains all heads to the end: set config.early_stopping.patience to 0")
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


def _scores(figures: Mapping[str, np.ndarray], name: str, sign: int) -> np.ndarray:
    """The figure that decides, higher being better; a head whose loss is not finite never counts."""
    return np.where(np.isfinite(figures["loss"]), sign * figures[name], -np.inf)


def _setting_arrays(job: Job, combinations: Sequence[tuple[float, float, Any]]) -> Settings:
    """Learning rates [settings], weight decays [settings] and class weights [settings, classes]."""
    rates, decays, specs = zip(*combinations, strict=True)
    none = (1.0,) * len(job.train_split.classes)
    weights = [job.task.class_weights(spec, job.train_split) or none for spec in specs]
    kind = job.recipes[0].model.numerics.param_dtype
    return jnp.asarray(rates, kind), jnp.asarray(decays, kind), jnp.asarray(weights, kind)


def _suffix(recipe: Recipe) -> Recipe:
    """The recipe with a plan of the stages after the frozen prefix, which alone take part."""
    leaves = [leaf for leaf in recipe.plan.leaves if leaf.path.split("/")[0] not in recipe.plan.frozen_prefix]
    return dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, leaves=tuple(leaves)))


def _initial_states(job: Job, recipe: Recipe, seeds: Sequence[int], num_settings: int) -> TrainState:
    """States [seeds, settings, ...] of the stages after the frozen prefix."""
    states = []
    for seed in seeds:
        begin = initial_variables(_seeded(job.config, seed), recipe.model, job.train_split.images.shape[1:])
        variables = {
            kind: {stage: leaf for stage, leaf in tree.items() if stage not in recipe.plan.frozen_prefix}
            for kind, tree in begin.variables.items()
        }
        states.append(initial_state(recipe, variables, jax.random.key(seed)))
    by_seed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[:, None], (len(seeds), num_settings, *leaf.shape[1:])), by_seed
    )


def _epoch_program(job: Job, suffix: Recipe) -> Any:
    """(states, settings, training and validation data, rows [steps, seeds, batch]) -> states and figures of an epoch.

    data: {'features', 'label'}; figures: {name: [seeds, settings]} on the validation data, and 'correct' of each
    example, [seeds, settings, n].
    """
    config, task, optimizer = job.config, job.task, job.phases[0].optimizer

    def take_step(state: TrainState, settings: Settings, batch: Any) -> TrainState:
        rate, weight_decay, class_weights = settings
        decays = jax.tree.map(lambda decay: weight_decay, suffix.plan.weight_decays())
        recipe = dataclasses.replace(
            suffix,
            tx=optim.optimizer(optimizer, decays),
            learning_rate=lambda step: suffix.learning_rate(step) * (rate / optimizer.learning_rate),
            loss=losses.loss_function(config.loss, class_weights, task.losses),
        )
        return train_step(state, batch, recipe=recipe)

    def finish(state: TrainState, settings: Settings, val: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        variables = evaluation_variables(state, suffix.plan)
        logits: Any = suffix.model.apply(variables, val["features"], start=suffix.plan.first_trained)
        loss = jnp.mean(job.plain_loss(logits, val["label"]))
        correct = task.correct(logits, val["label"])
        figures = {"loss": loss, task.step_figure: jnp.mean(correct), "correct": correct}
        own = SimpleNamespace(**{**optimizer.to_dict(), "learning_rate": settings[0]})
        plateau = optim.plateau_update(state.plateau, state.metrics.loss / state.metrics.steps, own)
        return dataclasses.replace(state, plateau=plateau, metrics=StepMetrics.empty()), figures

    def over_heads(one_head: Callable[..., Any], data_axis: int | None) -> Callable[..., Any]:
        settings = jax.vmap(one_head, in_axes=(0, 0, None))  # heads of one seed see the same batches
        return jax.vmap(settings, in_axes=(0, None, data_axis))

    def epoch(
        states: TrainState, settings: Settings, train: Any, val: Any, rows: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def step(states: TrainState, rows: jax.Array) -> tuple[TrainState, None]:
            batches = jax.tree.map(lambda array: array[rows], train)
            return over_heads(take_step, 0)(states, settings, batches), None

        states, _ = lax.scan(step, states, rows)
        return over_heads(finish, None)(states, settings, val)

    return jax.jit(epoch, donate_argnums=0)
