"""What a freeze strategy costs, from shapes alone: nothing trains and no image is read."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import models, tasks
from covidjax.data import phantom, phantom_findings, sources
from covidjax.data.examples import Examples
from covidjax.data.order import more_turns
from covidjax.errors import UserError
from covidjax.freeze.strategies import CACHED, default_strategies, split_cached, value_of
from covidjax.mesh import make_mesh
from covidjax.models.preprocessing import Preprocessing
from covidjax.train import parallel
from covidjax.train.features import Caching, shapes
from covidjax.train.job import Job, describe_freeze
from covidjax.train.phases import make_phases
from covidjax.train.setup import make_recipe
from covidjax.train.step import Recipe
from covidjax.weights import inputs
from covidjax.weights.start import InitialVariables

STEPS_PER_EPOCH = 100  # of the learning-rate schedule, which costs the same whatever it is


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one optimizer step of a strategy costs.

    strategy: as the config has it, behind 'cached:' where the step starts from the outputs of the frozen prefix.
    flops: of forward and backward pass, by XLA's count of the stages' programs before optimisation.
    prefix_flops: of the frozen prefix for one image. feature_bytes: of its outputs for one image; 0 without a prefix.
    temp_bytes, argument_bytes: of the compiled step, on each device.
    """

    strategy: str
    total_params: int
    trainable_params: int
    flops: float
    speedup_vs_none: float
    optimizer_bytes: int
    temp_bytes: int
    argument_bytes: int
    frozen_prefix: tuple[str, ...]
    prefix_flops: float
    feature_bytes: int
    batch_size: int

    @property
    def flops_per_image(self) -> float:
        """Of forward and backward pass."""
        return self.flops / self.batch_size


def job_of_shapes(config: ConfigDict, num_classes: int, mesh: Mesh | None = None) -> Job:
    """The job of a config without its data: shapes stand for weights, and one image a class for those of training.

    The mask of an image has no other class. mesh: over all local devices by default. Raises UserError where the config
    does not fit.
    """
    mesh = mesh or make_mesh(config.batch_size, config.accumulation_steps, config.mesh)
    config = ConfigDict(config.to_dict())
    with config.ignore_type():
        config.loss.class_weights = "none"  # they cost nothing, and may be of classes whose names are not known here
    dataset = config.dataset
    shape = (dataset.image_size, dataset.image_size, dataset.channels)
    names = tuple(map(str, range(num_classes)))
    labels = np.arange(num_classes, dtype=np.int32)
    masks = np.broadcast_to(labels.astype(np.uint8)[:, None, None], (num_classes, *shape[:2]))
    images = np.zeros((num_classes, *shape), np.uint8)
    task = tasks.of(config.model.name, config.loss.name)
    findings = np.eye(num_classes, dtype=np.int8) if "findings" in task.offers else None
    blank = Examples("train", images, labels, names, names, False, names, "", masks=masks, findings=findings)
    pixels = inputs.of_run(config.model, dataset.channels, config.pretrained, config.preprocessing).network
    return _job(config, pixels, blank, mesh)


def job_of_strategy(job: Job, strategy: str, *, cached: bool = False) -> Job:
    """The job under another strategy, in one phase.

    strategy: as `value_of` takes it. cached: whether its steps start from what the frozen prefix gives.
    Raises UserError for a strategy that is a run of phases, or does not fit the network.
    """
    config = ConfigDict(job.config.to_dict())
    with config.ignore_type():
        config.update({"freeze": value_of(strategy), "phases": ()})
    found = _job(config, job.recipes[0].preprocessing, job.train_split, job.mesh)
    if len(found.phases) > 1:
        raise UserError(
            f"{strategy!r} is a run of phases: set it as --config.freeze, and the plan of each phase is printed"
        )
    return dataclasses.replace(found, recipes=(dataclasses.replace(found.recipes[0], cached=cached),))


def _job(config: ConfigDict, pixels: Preprocessing, blank: Examples, mesh: Mesh) -> Job:
    phases = make_phases(config, STEPS_PER_EPOCH)
    num_outputs = tasks.of(config.model.name, config.loss.name).num_outputs(blank.classes)
    model = models.build(config.model, num_outputs, config.precision, lora_rank=configs.lora_rank(config))
    variables = jax.eval_shape(models.initialiser(model, pixels, blank.images.shape[1:]), jax.random.key(0))
    begin = InitialVariables(variables, pixels, ())
    return Job(
        config,
        tasks.of(config.model.name, config.loss.name).plain_loss(config.loss),
        mesh,
        blank,
        blank,
        {"placement": "stream"},
        STEPS_PER_EPOCH,
        phases,
        (blank,) * len(phases),
        tuple(make_recipe(config, phase, model, begin, blank, STEPS_PER_EPOCH) for phase in phases),
        (Caching("", 1, False, 0, 0, ""),) * len(phases),
        begin.variables,
        (),
    )


def strategies_of(job: Job) -> tuple[str, ...]:
    """Those worth comparing on the network of a job."""
    paths = traverse_util.flatten_dict(job.variables["params"], sep="/")
    return default_strategies(job.recipes[0].model.stages, paths)


def wanted(job: Job, names: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Each strategy, and behind it the same from cached features where its first stages are frozen, by its title."""
    found: dict[str, tuple[str, bool]] = {}
    for strategy, cached in map(split_cached, names):
        prefix = job_of_strategy(job, strategy).recipes[0].plan.frozen_prefix
        for way in (True,) if cached else (False, True) if prefix else (False,):
            found[f"{CACHED}:{strategy}" if way else strategy] = (strategy, way)
    return found


class DataFacts(NamedTuple):
    """Numbers of classes, of training images, and of examples in an epoch."""

    classes: int
    images: int
    epoch: int


def data_facts(dataset: ConfigDict, *, masks: bool = False) -> DataFacts:
    """The facts of a data set, without opening an image. masks: whether the classes are those of masks.

    Raises UserError where they are unknown, or `dataset.oversample` does not fit.
    """
    if dataset.name == "phantom_findings":
        return DataFacts(len(phantom_findings.FINDINGS), dataset.num_images, dataset.num_images)
    if dataset.name == "phantom":
        counts, images = phantom.training_counts(dataset), dataset.num_images
        classes: tuple[str, ...] = phantom.MASK_CLASSES if masks else phantom.CLASSES
    else:
        found = sources.listed(dataset, "train", masks=masks)
        classes, images = found.classes, len(found.names)
        counts = dict(zip(classes, np.bincount(found.labels, minlength=len(classes)).tolist(), strict=True))
    return DataFacts(len(classes), images, images + more_turns(counts, dataset.oversample))


def predict(job: Job, strategy: str, full_flops: float, *, cached: bool = False) -> Cost:
    """The cost of a strategy; its step is compiled for this machine's devices, and not run.

    job: of `job_of_shapes`; full_flops: of a step that trains everything, which the speed-up refers to.
    Raises UserError for a strategy that does not fit the network, or `cached` without a frozen prefix.
    """
    job = job_of_strategy(job, strategy, cached=cached)
    prefix, size = job.recipes[0].plan.frozen_prefix, job.config.batch_size
    if cached and not prefix:
        raise UserError(f"{CACHED}:{strategy}: the first stage trains, so there are no features to cache")
    table = describe_freeze(job, job.phases[0])
    rows, flops = table["rows"], table["step_flops"]
    memory = lower_step(job).compile().memory_analysis()
    outputs = shapes(job.recipes[0], (1, *job.train_split.images.shape[1:])) if prefix else ()
    return Cost(
        strategy=f"{CACHED}:{strategy}" if cached else strategy,
        total_params=sum(row["parameters"] for row in rows),
        trainable_params=sum(row["trainable"] for row in rows),
        flops=flops,
        speedup_vs_none=full_flops / flops,
        optimizer_bytes=sum(row["optimizer_bytes"] for row in rows),
        temp_bytes=int(memory.temp_size_in_bytes),
        argument_bytes=int(memory.argument_size_in_bytes),
        frozen_prefix=prefix,
        prefix_flops=sum(row["forward_flops"] for row in rows if row["stage"] in prefix) / size,
        feature_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(outputs)),
        batch_size=size,
    )


def full_flops(job: Job) -> float:
    """FLOPs of a step that trains everything."""
    everything = job_of_strategy(job, "none")
    return describe_freeze(everything, everything.phases[0])["step_flops"]


def lower_step(job: Job) -> Any:
    """The train step of the first phase over the job's mesh, with donated state, ready to be compiled."""
    state = job.phase_state(job.phases[0])
    placed = parallel.shardings(state, job.mesh)
    step = parallel.mapped_step(job.recipes[0], job.mesh, resident=False, placed=placed)
    return step.lower(state, job.abstract_data(job.phases[0]))


def caching_note(feature_views: int, recipe: Recipe) -> str:
    """Whether the features of a frozen prefix may be cached, in one line. feature_views: `config.feature_views`."""
    if recipe.augmentation.mixes:
        return "features may not be cached: config.augment.mixup and cutmix mix images"
    if not recipe.augments:
        return "features may be cached: nothing random comes before the frozen prefix"
    if feature_views:
        return f"features may be cached: config.feature_views is {feature_views} augmented views of each image"
    return "features may not be cached: augmentation changes every image anew, and config.feature_views is 0"
