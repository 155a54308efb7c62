"""A run as it is decided before its first step, and the states and the costs of its phases."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from covidjax import tasks
from covidjax.data.examples import Examples
from covidjax.freeze.table import freeze_table, step_flops
from covidjax.losses import LossFunction
from covidjax.mesh import place
from covidjax.tasks.base import Task
from covidjax.train import features, parallel
from covidjax.train.features import Caching
from covidjax.train.phases import Phase, enter_phase, initial_state, phase_at
from covidjax.train.state import TrainState
from covidjax.train.step import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A run before its first step.

    plain_loss: what validation reports; steps_per_epoch: of the training split; examples: what each phase trains on;
    recipes, caching: one a phase; variables: the weights that the run starts from; data_seconds: what reading the two
    splits took.
    """

    config: ConfigDict
    plain_loss: LossFunction
    mesh: Mesh
    train_split: Examples
    val_split: Examples
    placement: dict[str, Any]
    steps_per_epoch: int
    phases: tuple[Phase, ...]
    examples: tuple[Examples, ...]
    recipes: tuple[Recipe, ...]
    caching: tuple[Caching, ...]
    variables: dict[str, Any]
    notes: tuple[str, ...]
    data_seconds: float = 0.0

    @property
    def task(self) -> Task:
        """The kind of label."""
        return tasks.of(self.config.model.name, self.config.loss.name)

    @property
    def last_step(self) -> int:
        """Optimizer steps of the whole run."""
        return self.phases[-1].last_step

    def epoch(self, step: int) -> float:
        """The finished epochs of the run after so many of its steps."""
        return phase_at(self.phases, step).epoch(step)

    def resident(self, phase: Phase) -> bool:
        """Whether what a phase trains on lives on the devices."""
        return (self.caching[phase.index].placement or self.placement["placement"]) == "device"

    def fresh_state(self) -> TrainState:
        """The state before the first step, on the devices."""
        state = initial_state(self.recipes[0], self.variables, jax.random.key(self.config.seed))
        return place(state, parallel.shardings(state, self.mesh))

    def abstract_data(self, phase: Phase) -> Any:
        """Shapes of what a step of a phase takes: the resident data with all its views, or a batch from the host."""
        caching, recipe, examples = self.caching[phase.index], self.recipes[phase.index], self.examples[phase.index]
        rows = caching.views * len(examples) if self.resident(phase) else self.config.batch_size
        shape = (rows, *examples.images.shape[1:])
        data = {"image": jax.ShapeDtypeStruct(shape, examples.images.dtype)}
        if recipe.cached:
            data = {"features": features.shapes(recipe, shape)}
        targets = self.task.targets(examples)
        return {**data, "label": jax.ShapeDtypeStruct((rows, *targets.shape[1:]), targets.dtype)}

    def begin_phase(self, phase: Phase, state: TrainState) -> TrainState:
        """The state with which a phase that follows another begins."""
        state = enter_phase(state, self.recipes[phase.index - 1], self.recipes[phase.index])
        return place(state, parallel.shardings(state, self.mesh))

    def abstract_state(self, step: int) -> TrainState:
        """Shapes and shardings of the state that a checkpoint of `step` finished steps holds."""
        return self.phase_state(phase_at(self.phases, step))

    def phase_state(self, phase: Phase) -> TrainState:
        """Shapes and shardings of the state of a phase."""
        recipe = self.recipes[phase.index]
        key = jax.random.key(self.config.seed)
        state = jax.eval_shape(lambda variables: initial_state(recipe, variables, key), self.variables)
        return jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding), state, parallel.shardings(state, self.mesh)
        )


def describe_freeze(job: Job, phase: Phase) -> dict[str, Any]:
    """The freeze table and the costs of a phase: {'phase', 'strategy', 'rows', 'summary', 'step_flops', 'features'}.

    step_flops: of one step, without the frozen prefix where its outputs are cached.
    """
    recipe, config = job.recipes[phase.index], job.config
    pixels = jax.ShapeDtypeStruct(
        (config.batch_size, *job.train_split.images.shape[1:]), recipe.model.numerics.param_dtype
    )
    images = jax.eval_shape(recipe.preprocessing, pixels)
    rows, summary = freeze_table(
        recipe.plan, recipe.model, job.variables, images, recipe.tx, phase.optimizer.learning_rate
    )
    caching = job.caching[phase.index]
    prefix = recipe.plan.frozen_prefix if recipe.cached else ()
    paid = step_flops([row for row in rows if row["stage"] not in prefix])
    note = caching.note
    if prefix:
        note += f"; a step then costs {paid / 1e9:.3g} of {step_flops(rows) / 1e9:.3g} GFLOP"
    return {
        "phase": phase.index,
        "strategy": phase.freeze,
        "rows": rows,
        "summary": summary,
        "step_flops": paid,
        "features": {**dataclasses.asdict(caching), "note": note},
    }
