"""Trained networks whose answers are mixed: the members of an ensemble, and the finished mixture of a workdir."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, models, tasks
from covidjax.checkpoint.checkpoint import Which
from covidjax.errors import UserError, some_of
from covidjax.evaluate.network import inference
from covidjax.models import mixture
from covidjax.process import path_of
from covidjax.tasks.base import Task
from covidjax.weights.workdir import Trained, load_trained


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A trained network. name: of its workdir, or all of the path where two have the same."""

    name: str
    workdir: Path
    trained: Trained

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Its answers, by one pass: [n, height, width, channels] uint8 -> [n, classes] float32 or float64.

        Raises UserError where they are not finite.
        """
        size = min(self.trained.config.batch_size, len(images))
        logits = inference(*self.trained.network, size, jax.local_device_count())(images)
        if not np.isfinite(logits).all():
            raise UserError(f"the network of {self.workdir} answers with what is no number: leave it out")
        return self.trained.task.answer(logits, self.trained.config.loss)

    def describe(self) -> dict[str, Any]:
        """Its entry in run.json."""
        config = self.trained.config
        return {
            "name": self.name,
            "workdir": str(self.workdir),
            "model": config.model.name,
            "image_size": config.dataset.image_size,
            "channels": config.dataset.channels,
            "step": self.trained.step,
            "which": self.trained.which,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.trained.variables["params"])),
            "weights_sha256": self.trained.digest,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A finished ensemble. config: its own; weights: [members] float64."""

    config: ConfigDict
    members: tuple[Member, ...]
    weights: np.ndarray

    @property
    def task(self) -> Task:
        """What it answers."""
        return tasks.of(self.config.model.name)

    @property
    def origin(self) -> str:
        """What is mixed, in words."""
        return f"mixture of {', '.join(member.name for member in self.members)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What has changed since the members were trained."""
        return tuple(dict.fromkeys(note for member in self.members for note in member.trained.notes))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that all members know."""
        return self.members[0].trained.classes

    def mix(self, probabilities: np.ndarray) -> np.ndarray:
        """The mixture [n, classes] of the members' answers [members, n, classes]."""
        return np.asarray(mixture.mix(probabilities, self.weights, self.config.ensemble.mix))


def load_members(workdirs: Sequence[str], checkpoints: Iterable[Which | None], precision: str) -> tuple[Member, ...]:
    """The networks of some workdirs, each at its checkpoint. precision: that of the ensemble.

    Raises UserError where there are fewer than two, one twice, or one that is no trained classifier; where they know
    different classes; and for a member of double precision in an ensemble that is not.
    """
    paths = [path_of(workdir) for workdir in workdirs]
    if len(paths) < 2:
        raise UserError(
            f"config.ensemble.members names {len(paths)} workdirs: an ensemble has two or more, "
            "--config.ensemble.members=\"('runs/a', 'runs/b')\""
        )
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UserError(f"config.ensemble.members names {paths[index]} twice: name each workdir once")
    names = [path.name for path in resolved]
    members: list[Member] = []
    for path, name, which in zip(paths, names, checkpoints, strict=True):
        config = configs.of_workdir(path)
        task = tasks.of(config.model.name, config.loss.name)
        if "ensemble" not in task.offers:
            raise UserError(f"{path} is {config.model.name}, which {task.words}: an ensemble mixes classifiers")
        if config.precision == "float64" and precision != "float64":
            raise UserError(f"{path} is of precision float64: give the ensemble --config.precision=float64 too")
        trained = load_trained(path, which)
        known = members[0].trained.classes if members else trained.classes
        if trained.classes != known:
            raise UserError(
                f"{path} knows the classes {some_of(trained.classes)}, and {paths[0]} knows {some_of(known)}: "
                "members are trained on the same classes"
            )
        members.append(Member(name if names.count(name) == 1 else str(path), path, trained))
    return tuple(members)


def load_mixture(workdir: Path, which: Which | None) -> Mixture:
    """The finished ensemble of a workdir.

    Raises UserError where it is not finished, a member is another network now, or `which` names another checkpoint.
    """
    if which not in (None, "best"):
        raise UserError("--checkpoint: an ensemble has none, its members are taken as they were mixed: leave it out")
    config = configs.of_workdir(workdir)
    recorded = files.entry(workdir / "run.json", "ensemble")
    if "weights" not in recorded:
        raise UserError(f"the ensemble of {workdir} is not finished: run launch/train.py with the same flags again")
    steps = [member["step"] for member in recorded["members"]]
    members = load_members([member["workdir"] for member in recorded["members"]], steps, config.precision)
    check_unchanged(workdir, members, recorded)
    return Mixture(config, members, np.array(recorded["weights"]))


def load_network(workdir: Path, which: Which | None) -> Trained | Mixture:
    """The network of a run, or the mixture of an ensemble. Raises what `load_trained` and `load_mixture` raise."""
    is_ensemble = configs.of_workdir(workdir).model.name == models.ENSEMBLE
    return load_mixture(workdir, which) if is_ensemble else load_trained(workdir, which)


def check_unchanged(workdir: Path, members: Sequence[Member], recorded: dict[str, Any]) -> None:
    """Raises UserError where a member has other weights than those that run.json recorded under 'ensemble'."""
    for member, before in zip(members, recorded["members"], strict=True):
        if member.trained.digest != before["weights_sha256"]:
            raise UserError(
                f"{member.workdir} is not the network that {workdir} mixes: it was trained anew; make another ensemble "
                "in another --workdir"
            )
