"""Everything of a run that is decided before its first step: data, network, phases, recipes."""

import dataclasses
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import models, optim, tasks
from covidjax.data import sources, splits
from covidjax.data.augment import augmentation_of
from covidjax.data.copies import copies, seen
from covidjax.data.examples import Examples, joined
from covidjax.data.order import oversampled, steps_per_epoch
from covidjax.data.resident import choose_placement
from covidjax.errors import UserError
from covidjax.mesh import make_mesh
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.ops.choose import choose
from covidjax.tasks.base import Task
from covidjax.tasks.weighting import weight_notes
from covidjax.train import features, parallel
from covidjax.train.effects import effect_notes
from covidjax.train.job import Job
from covidjax.train.phases import Phase, average_notes, make_phases, split_notes
from covidjax.train.statistics import check_batch_statistics
from covidjax.train.step import Recipe
from covidjax.weights.start import InitialVariables, expected_variables, initial_variables


def prepare(config: ConfigDict, resumed: Preprocessing | None = None, recorded: Path | None = None) -> Job:
    """Loads the training and validation splits and settles the rest. Raises UserError for what a person can mend.

    resumed: the preprocessing of a run that goes on from a checkpoint; the weights it began with are not read then, and
        `variables` are shapes.
    recorded: where the run has kept the split that it drew, None for a new one.
    """
    check_engine(config)
    mesh = make_mesh(config.batch_size, config.accumulation_steps, config.mesh)
    task = tasks.of(config.model.name, config.loss.name)
    began = time.monotonic()
    train_split, val_split = _load(config.dataset, task, recorded)
    data_seconds = time.monotonic() - began
    splits.check_disjoint(train_split, val_split)
    num_turns = len(train_split.turns())
    epoch_steps = steps_per_epoch(num_turns, config.batch_size)
    if epoch_steps == 0:
        raise UserError(f"config.batch_size {config.batch_size} exceeds the {num_turns} training images: lower it")
    with_val = _with_val(config, train_split, val_split)
    contents = "training images and masks" if task.masks else "training images"
    placement = choose_placement(task.num_bytes(with_val or train_split), contents, config.dataset.placement)
    operations = choose(config.ops)
    model = models.build(
        config.model,
        task.num_outputs(train_split.classes),
        config.precision,
        native=operations.native,
        lora_rank=configs.lora_rank(config),
    )
    shape = train_split.images.shape[1:]
    begin = expected_variables(model, resumed, shape) if resumed else initial_variables(config, model, shape)
    longer = steps_per_epoch(len(with_val.turns()), config.batch_size) if with_val else None
    phases = make_phases(config, epoch_steps, longer)
    own = tuple(train_split if phase.split == "train" or with_val is None else with_val for phase in phases)
    recipes = tuple(
        make_recipe(config, phase, model, begin, examples, phase.epoch_steps)
        for phase, examples in zip(phases, own, strict=True)
    )
    sharing = config.batch_size // config.accumulation_steps // (1 if config.sync_batch_norm else mesh.size)
    together = jax.ShapeDtypeStruct((sharing, *shape), train_split.images.dtype)
    wanted = (sharing, *(shape[:2] if task.masks else ()), task.num_outputs(train_split.classes))
    for recipe in recipes:
        logits = check_batch_statistics(recipe, begin.variables, together)
        if logits != wanted:
            raise UserError(
                f"the network {config.model.name} gives {list(logits)} for {sharing} images: allowed is "
                f"{list(wanted)}, the logits of num_classes"
            )
    caching = tuple(
        features.decide(
            recipe,
            (phase.last_step - phase.first_step) / phase.epoch_steps,
            examples,
            val_split,
            mode=config.features,
            max_views=config.feature_views,
            configured_cache=config.dataset.cache_dir,
        )
        for phase, recipe, examples in zip(phases, recipes, own, strict=True)
    )
    if config.features == "on" and not any(each.placement for each in caching):
        raise UserError(f"config.features is on, but no phase begins with frozen stages: freeze some of {model.stages}")
    recipes = tuple(
        dataclasses.replace(recipe, cached=bool(each.placement)) for recipe, each in zip(recipes, caching, strict=True)
    )
    notes = tuple(
        dict.fromkeys(
            (
                *train_split.notes,
                *val_split.notes,
                *copies([*seen(train_split), *seen(val_split)]),
                *task.split_notes(train_split, val_split),
                *weight_notes(recipes[0].loss, train_split.classes),
                *average_notes(phases),
                *split_notes(phases, tuple(map(len, own))),
                *effect_notes(config, phases, recipes, caching, begin.variables),
                placement["note"],
                *parallel.division_notes(begin.variables["params"], mesh),
                operations.note,
                *begin.notes,
            )
        )
    )
    loss, variables = task.plain_loss(config.loss), begin.variables
    return Job(
        config,
        loss,
        mesh,
        train_split,
        val_split,
        placement,
        epoch_steps,
        phases,
        own,
        recipes,
        caching,
        variables,
        notes,
        data_seconds,
    )


def _with_val(config: ConfigDict, train_split: Examples, val_split: Examples) -> Examples | None:
    """The training and the validation images together, where a phase trains on them."""
    if not configs.trains_on_val(config):
        return None
    return oversampled(joined(train_split, val_split), config.dataset.oversample)


def check_engine(config: ConfigDict) -> None:
    """Raises UserError where pmap, which knows one axis of devices of one process, is asked for more."""
    if config.parallel == "pmap" and (jax.process_count() > 1 or dict(config.mesh).get("fsdp", 1) != 1):
        many = f"{jax.process_count()} processes" if jax.process_count() > 1 else f"config.mesh {config.mesh!r}"
        raise UserError(f"config.parallel is 'pmap' with {many}: it is for the devices of one process; use 'jit'")


def _load(dataset: ConfigDict, task: Task, recorded: Path | None) -> list[Examples]:
    """The training and the validation split; what is wrong with either is told at once."""
    found, faults = [], []
    for split in ("train", "val"):
        try:
            found.append(sources.load(dataset, split, masks=task.masks, recorded=recorded))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("; ".join(dict.fromkeys(faults)))
    return found


def make_recipe(
    config: ConfigDict, phase: Phase, model: Staged, begin: InitialVariables, train_split: Examples, epoch_steps: int
) -> Recipe:
    """The recipe of the steps of a phase. Raises UserError where the plan does not fit, or remat names no stage."""
    remat = config.remat if isinstance(config.remat, str) else tuple(config.remat) or "none"
    if unknown := [stage for stage in remat if not isinstance(remat, str) and stage not in model.stages]:
        raise UserError(f"config.remat names {unknown[0]!r}: the stages are {', '.join(model.stages)}")
    plan = phase.plan(begin.variables, model.stages)
    task = tasks.of(config.model.name, config.loss.name)
    return Recipe(
        model=model,
        prefix=models.build(
            config.model,
            task.num_outputs(train_split.classes),
            config.prefix_precision or config.precision,
            native=model.numerics.native,
            lora_rank=configs.lora_rank(config),
        ),
        plan=plan,
        tx=optim.optimizer(phase.optimizer, plan.weight_decays()),
        learning_rate=optim.learning_rate_schedule(phase.optimizer, phase.schedule_steps, epoch_steps),
        momentum=optim.momentum_schedule(phase.optimizer, phase.schedule_steps),
        loss=task.train_loss(config.loss, train_split),
        correct=task.correct,
        augmentation=augmentation_of(config.augment.to_dict()),
        preprocessing=begin.preprocessing,
        schedule_start=phase.schedule_start,
        accumulation_steps=config.accumulation_steps,
        remat=remat,
        sync_batch_norm=config.sync_batch_norm,
        skip_nonfinite=config.nonfinite == "skip" and config.precision != "float16",  # where loss scaling does so
    )
