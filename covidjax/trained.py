"""The trained network of a workdir: its config, its classes, its weights."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, models
from covidjax.data.order import steps_per_epoch
from covidjax.data.oversampling import more_turns
from covidjax.errors import UserError
from covidjax.models.layers import Staged
from covidjax.ops import native
from covidjax.preprocessing import Preprocessing
from covidjax.train.checkpoint import Checkpoints
from covidjax.train.phases import evaluation_variables, make_phases, phase_at
from covidjax.weights import inputs

Which = int | Literal["best", "latest"]


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A network as a checkpoint left it. which: 'best', 'latest' or a step; step: the one that this came to."""

    config: ConfigDict
    classes: tuple[str, ...]
    model: Staged
    preprocessing: Preprocessing
    variables: dict[str, Any]
    step: int
    which: Which

    @property
    def origin(self) -> str:
        """Where its weights are from, in words."""
        return f"checkpoint of step {self.step}"


def open_checkpoints(workdir: Path, config: ConfigDict) -> Checkpoints:
    """The checkpoints of a run."""
    higher_is_better = config.checkpoint.best != "loss"
    return Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep, higher_is_better=higher_is_better)


def load_trained(workdir: Path, which: Which) -> Trained:
    """Restores the network of a checkpoint, with the moving average of the trained leaves where the run kept one.

    'best' falls to 'latest' where no checkpoint has a finite validation figure.
    Raises UserError where the workdir holds no run, or the checkpoint is missing or damaged.
    """
    config = configs.from_json(files.read_json(workdir / "config.json"))
    preprocessing = inputs.recorded(workdir)
    data = files.read_json(workdir / "run.json")["data"]["train"]
    classes = tuple(data["classes"])
    model = models.build(config.model, len(classes), config.precision, native=native.choose(config.ops).native)
    shape = (1, config.dataset.image_size, config.dataset.image_size, config.dataset.channels)
    abstract = jax.eval_shape(
        lambda key: model.init(key, preprocessing(jnp.zeros(shape, model.param_dtype))), jax.random.key(0)
    )
    wanted: dict[str, Any] = {"params": abstract["params"], "batch_stats": abstract.get("batch_stats", {})}
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with open_checkpoints(workdir, config) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"there is no finished checkpoint in {workdir}: train first, or name another workdir")
        if which == "best" and checkpoints.best_step() is None:
            which = "latest"
        step = which if isinstance(which, int) else checkpoints.steps()[-1]
        if step not in checkpoints.steps():
            raise UserError(
                f"there is no checkpoint {step} in {workdir}: use best, latest or one of "
                f"{', '.join(map(str, checkpoints.steps()))}"
            )
        if which == "best" and (best_step := checkpoints.best_step()) is not None:
            step = best_step
        num_turns = data["num_examples"] + more_turns(data["classes"], config.dataset.oversample)
        phase = phase_at(make_phases(config, steps_per_epoch(num_turns, config.batch_size)), step)
        plan = phase.plan(wanted, model.stages)
        if plan.ema_decays() is not None:
            wanted["average"] = plan.averaged(wanted["params"], wanted["batch_stats"])
        wanted = jax.tree.map(lambda leaf: leaf.update(sharding=device), wanted)
        state = dict(checkpoints.restore(step, wanted, partial=True).state)
    variables = evaluation_variables(state["params"], state["batch_stats"], state.get("average"), plan)
    return Trained(config, classes, model, preprocessing, variables, step, which)
