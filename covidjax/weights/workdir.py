"""The trained network of a workdir: its config, its classes, its weights."""

import dataclasses
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, models, tasks
from covidjax.checkpoint import journal
from covidjax.checkpoint.checkpoint import Checkpoints, Which
from covidjax.config.plugins import changes
from covidjax.errors import UserError
from covidjax.models.branches import merged
from covidjax.models.layers import Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.ops.choose import choose
from covidjax.tasks.base import Task
from covidjax.weights import inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A network as a checkpoint left it.

    which: 'best', 'latest' or a step; step: the one that this came to; notes: what has changed since, of plugins.
    """

    config: ConfigDict
    classes: tuple[str, ...]
    model: Staged
    preprocessing: Preprocessing
    variables: dict[str, Any]
    step: int
    which: Which
    notes: tuple[str, ...] = ()

    @property
    def network(self) -> tuple[Staged, Preprocessing, dict[str, Any]]:
        """Model, preprocessing and variables, as `evaluate.network.inference` takes them."""
        return self.model, self.preprocessing, self.variables

    @property
    def task(self) -> Task:
        """What it answers."""
        return tasks.of(self.config.model.name, self.config.loss.name)

    @property
    def origin(self) -> str:
        """The origin of its weights, in words."""
        return f"checkpoint of step {self.step}"

    @property
    def digest(self) -> str:
        """SHA-256 of names and bits of all variables, in hexadecimal."""
        digest = hashlib.sha256()
        update_digest(digest, self.variables)
        return digest.hexdigest()


def update_digest(digest: Any, tree: Any) -> None:
    """Feeds a digest of hashlib with the paths and the bytes of a tree's leaves."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())


def open_checkpoints(workdir: Path, config: ConfigDict) -> Checkpoints:
    """The checkpoints of a run."""
    best = tasks.of(config.model.name, config.loss.name).best
    higher_is_better = best[config.checkpoint.best] > 0
    return Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep, higher_is_better=higher_is_better)


def load_trained(workdir: Path, which: Which | None) -> Trained:
    """Restores the network of a checkpoint, with the moving average of the trained leaves where the run kept one.

    Adapters are added to their kernels: it is the network without.

    which: None is the one that `config.checkpoint.evaluate` of the run names.
    'best' falls to 'latest' where no checkpoint has a finite validation figure. Where another process trains in the
    workdir, and retires the checkpoint while it is read, the choice is made again.
    Raises UserError where the workdir holds no run, or the checkpoint is missing or damaged.
    """
    config = configs.of_workdir(workdir)
    if which is None:
        which = "best" if config.checkpoint.evaluate == "best" else "latest"
    preprocessing = inputs.recorded(workdir)
    classes = tuple(files.entry(workdir / "run.json", "data", "train", "classes"))
    num_outputs = tasks.of(config.model.name, config.loss.name).num_outputs(classes)
    native = choose(config.ops).native
    model, trained = (
        models.build(config.model, num_outputs, config.precision, native=native, lora_rank=rank)
        for rank in (0, configs.lora_rank(config))
    )
    shape = (config.dataset.image_size, config.dataset.image_size, config.dataset.channels)
    wanted = jax.eval_shape(models.initialiser(trained, preprocessing, shape), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda leaf: leaf.update(sharding=device), wanted)
    with open_checkpoints(workdir, config) as checkpoints:
        while True:
            step, chosen = checkpoints.find(which)
            try:
                averaged = _averaged(wanted, checkpoints.leaf_names(step))
                state = dict(checkpoints.restore(step, wanted | averaged, partial=True).state)
                break
            except UserError:
                if isinstance(which, int) or step in checkpoints.steps():
                    raise
    average = traverse_util.flatten_dict(state.pop("average", {}))
    variables = traverse_util.unflatten_dict(traverse_util.flatten_dict(state, keep_empty_nodes=True) | average)
    variables["params"] = merged(variables["params"])
    notes = tuple(changes(journal.read(workdir).get("plugins", {}), config.plugins))
    return Trained(config, classes, model, preprocessing, variables, step, chosen, notes)


def _averaged(wanted: dict[str, Any], leaf_names: Collection[str]) -> dict[str, Any]:
    """{'average': the part of `wanted` that a checkpoint keeps a moving average of}; {} where it keeps none."""
    leaves = traverse_util.flatten_dict(wanted)
    kept = {path: leaf for path, leaf in leaves.items() if "/".join(("average", *path)) in leaf_names}
    return {"average": traverse_util.unflatten_dict(kept)} if kept else {}
