"""What a freeze strategy costs, from shapes alone: nothing trains and no image is read."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from covidjax import models, tasks
from covidjax.data import phantom, sources
from covidjax.data.examples import Examples
from covidjax.data.order import more_turns
from covidjax.errors import UserError
from covidjax.freeze.strategies import CACHED, default_strategies
from covidjax.freeze.table import freeze_table, step_flops
from covidjax.mesh import make_mesh
from covidjax.models.layers import Staged
from covidjax.train import features, parallel, setup
from covidjax.train.phases import Phase, initial_state, make_phases
from covidjax.train.step import Recipe
from covidjax.weights import inputs
from covidjax.weights.start import InitialVariables

STEPS_PER_EPOCH = 100  # of the learning-rate schedule, which costs the same whatever it is


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What all strategies of a comparison share.

    begin: shapes of 'params' and 'batch_stats', and their preprocessing; blank: stands for the training split, one
    image a class, whose mask has no other.
    """

    config: ConfigDict
    model: Staged
    begin: InitialVariables
    blank: Examples

    @property
    def images(self) -> tuple[int, int, int, int]:
        """Batch size, height, width and channels of the images of a step."""
        height, width, channels = self.blank.images.shape[1:]
        return self.config.batch_size, height, width, channels

    def recipe(self, phase: Phase) -> Recipe:
        """What a step of the phase does."""
        return setup.make_recipe(self.config, phase, self.model, self.begin, self.blank, STEPS_PER_EPOCH)

    def phases(self) -> tuple[Phase, ...]:
        """The phases that the config itself describes."""
        return make_phases(self.config, STEPS_PER_EPOCH)

    def default_strategies(self) -> tuple[str, ...]:
        """Those worth comparing on this network."""
        paths = traverse_util.flatten_dict(self.begin.variables["params"], sep="/")
        return default_strategies(self.model.stages, paths)

    def recipe_of(self, strategy: str) -> Recipe:
        """What a step does under another strategy, in a run of one phase.

        Raises UserError for a strategy that is a run of phases, or does not fit the network.
        """
        config = ConfigDict(self.config.to_dict())
        with config.ignore_type():
            config.update({"freeze": strategy, "phases": ()})
        first, *others = make_phases(config, STEPS_PER_EPOCH)
        if others:
            raise UserError(
                f"{strategy!r} is a run of phases: set it as --config.freeze, and the plan of each phase is printed"
            )
        return self.recipe(first)

    def batch(self, recipe: Recipe) -> dict[str, Any]:
        """Shapes of the batch of a step; segmentation networks have a label for every pixel."""
        targets = tasks.of(self.config.model.name, self.config.loss.name).targets(self.blank)
        labels = jax.ShapeDtypeStruct((self.config.batch_size, *targets.shape[1:]), targets.dtype)
        if recipe.cached:
            return {"features": features.shapes(recipe, self.images), "label": labels}
        return {"image": jax.ShapeDtypeStruct(self.images, np.uint8), "label": labels}

    def table(self, recipe: Recipe) -> tuple[list[dict[str, Any]], str]:
        """`freeze.freeze_table` of a recipe."""
        pixels = jax.ShapeDtypeStruct(self.images, recipe.model.numerics.param_dtype)
        images = jax.eval_shape(recipe.preprocessing, pixels)
        return freeze_table(recipe.plan, recipe.model, self.begin.variables, images, recipe.tx)


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


def make_setting(config: ConfigDict, num_classes: int) -> Setting:
    """The setting of a config, with the data set replaced by its shape. Raises UserError where it does not fit."""
    config = ConfigDict(config.to_dict())
    with config.ignore_type():
        config.loss.class_weights = "none"  # they cost nothing, and may be of classes whose names are not known here
    dataset = config.dataset
    shape = (dataset.image_size, dataset.image_size, dataset.channels)
    names = tuple(map(str, range(num_classes)))
    labels = np.arange(num_classes, dtype=np.int32)
    masks = np.broadcast_to(labels.astype(np.uint8)[:, None, None], (num_classes, *shape[:2]))
    images = np.zeros((num_classes, *shape), np.uint8)
    blank = Examples("train", images, labels, names, names, False, names, "", masks=masks)
    num_outputs = tasks.of(config.model.name, config.loss.name).num_outputs(names)
    model = models.build(config.model, num_outputs, config.precision)
    pixels = inputs.of_run(config.model, dataset.channels, config.pretrained, config.preprocessing).network
    variables = jax.eval_shape(models.initialiser(model, pixels, shape), jax.random.key(0))
    return Setting(config, model, InitialVariables(variables, pixels, ()), blank)


class DataFacts(NamedTuple):
    """Numbers of classes, of training images, and of examples in an epoch."""

    classes: int
    images: int
    epoch: int


def data_facts(dataset: ConfigDict, *, masks: bool = False) -> DataFacts:
    """The facts of a data set, without opening an image. masks: whether the classes are those of masks.

    Raises UserError where they are unknown, or `dataset.oversample` does not fit.
    """
    if dataset.name == "phantom":
        counts, images = phantom.training_counts(dataset), dataset.num_images
        classes: tuple[str, ...] = phantom.MASK_CLASSES if masks else phantom.CLASSES
    else:
        found = sources.listed(dataset, "train", masks=masks)
        classes, images = found.classes, len(found.names)
        counts = dict(zip(classes, np.bincount(found.labels, minlength=len(classes)).tolist(), strict=True))
    return DataFacts(len(classes), images, images + more_turns(counts, dataset.oversample))


def predict(setting: Setting, strategy: str, full_flops: float, *, cached: bool = False) -> Cost:
    """The cost of a strategy; its step is compiled for this machine's devices, and not run.

    full_flops: of a step that trains everything, which the speed-up refers to.
    Raises UserError for a strategy that does not fit the network, or `cached` without a frozen prefix.
    """
    recipe = dataclasses.replace(setting.recipe_of(strategy), cached=cached)
    prefix, size = recipe.plan.frozen_prefix, setting.config.batch_size
    if cached and not prefix:
        raise UserError(f"{CACHED}:{strategy}: the first stage trains, so there are no features to cache")
    rows, _ = setting.table(recipe)
    flops = step_flops([row for row in rows if not (cached and row["stage"] in prefix)])
    memory = lower_step(setting, recipe).compile().memory_analysis()
    outputs = jax.tree.leaves(features.shapes(recipe, setting.images)) if prefix else []
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
        feature_bytes=sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in outputs),
        batch_size=size,
    )


def full_flops(setting: Setting) -> float:
    """FLOPs of a step that trains everything."""
    return step_flops(setting.table(setting.recipe_of("none"))[0])


def lower_step(setting: Setting, recipe: Recipe) -> Any:
    """The train step of a recipe over the local devices, with donated state, ready to be compiled."""
    mesh = make_mesh(setting.config.batch_size, setting.config.accumulation_steps)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda variables: initial_state(recipe, variables, key), setting.begin.variables)
    return parallel.mapped_step(recipe, mesh, resident=False).lower(state, setting.batch(recipe))


def caching_note(feature_views: int, recipe: Recipe) -> str:
    """Whether the features of a frozen prefix may be cached, in one line. feature_views: `config.feature_views`."""
    if not recipe.augments:
        return "features may be cached: nothing random comes before the frozen prefix"
    if feature_views:
        return f"features may be cached: config.feature_views is {feature_views} augmented views of each image"
    return "features may not be cached: augmentation changes every image anew, and config.feature_views is 0"
