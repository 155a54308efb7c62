"""What a workdir says of its run: config.json and run.json, and whether a run may go on in it."""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, models, optim
from covidjax.checkpoint import journal
from covidjax.config.plugins import changes, digests
from covidjax.console import say
from covidjax.data import flat
from covidjax.data.examples import Examples
from covidjax.distributed.processes import Processes
from covidjax.errors import UserError
from covidjax.process import git_revision
from covidjax.tasks.base import Task
from covidjax.train.job import Job
from covidjax.train.phases import Phase, make_phases
from covidjax.weights import inputs

PACKAGES = ("covidjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "clu", "ml_collections", "numpy")
# A resumed run may differ in these: they change where things lie, what is kept and waited for, not what is computed.
FREE_TO_CHANGE = (
    "audit",
    "mesh",
    "processes.start_seconds",
    "processes.heartbeat_seconds",
    "watchdog_seconds",
    "dataset.root",
    "dataset.cache_dir",
    "dataset.placement",
    "checkpoint.every_epochs",
    "checkpoint.keep",
    "writers",
)
CHECKED_STEPS = 8  # of an epoch, where the learning rates of two configs are compared


def open_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder, or checks that it holds a run of the same config; writes nothing into it.

    Raises UserError with the keys that differ, or where the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"--workdir: cannot write to {workdir}: {error.strerror}: choose another folder") from error
    path = workdir / "config.json"
    if path.exists():
        former = configs.of_workdir(workdir)  # with the defaults of keys that are younger than the run
        changes = config_changes(former, config, FREE_TO_CHANGE)
        if changes and not (longer := _only_longer(former, config)):
            way = "use another --workdir, or the former values"
            if longer is not None:
                way = (
                    "only constant, plateau and step schedules go on as they would have from the start: to train on, "
                    f"give another --workdir and --config.pretrained={workdir}"
                )
            if journal.read(workdir).get("git_revision", revision := git_revision()) != revision:
                way += (
                    "; the run is of another revision of covidjax (git_revision in run.json), so defaults and states "
                    f"may differ too: then train from it in another --workdir with --config.pretrained={workdir}"
                )
            raise UserError(f"{workdir} holds a run of another config: {changes}: {way}")


def _only_longer(former: ConfigDict, config: ConfigDict) -> bool | None:
    """Whether a config has more epochs, nothing else, and the steps of the former one; None where it is no such."""
    if former.epochs >= config.epochs or config_changes(former, config, (*FREE_TO_CHANGE, "epochs")):
        return None
    if config.model.name == models.ENSEMBLE:
        return False
    before, now = make_phases(former, CHECKED_STEPS), make_phases(config, CHECKED_STEPS)
    if len(before) != len(now) or before[-1].last_step >= now[-1].last_step:
        return False
    for old, new in zip(before, now, strict=True):
        end = before[-1].last_step
        if dataclasses.replace(old, last_step=new.last_step, schedule_steps=new.schedule_steps) != new:
            return False
        if old.last_step != min(new.last_step, end) or not np.array_equal(_rates(old, end), _rates(new, end)):
            return False
    return True


def _rates(phase: Phase, end: int) -> np.ndarray:
    """The learning rates of the steps of a phase before `end`."""
    schedule = optim.learning_rate_schedule(phase.optimizer, phase.schedule_steps, CHECKED_STEPS)
    steps = np.arange(phase.first_step, min(phase.last_step, end)) - phase.schedule_start
    return np.broadcast_to(schedule(steps), steps.shape)


def config_changes(former: ConfigDict, config: ConfigDict, free: Sequence[str]) -> str:
    """The keys whose values differ, with both values, but for the `free` ones; empty where none does."""
    before, now = (dict(configs.flatten(configs.to_json(each))) for each in (former, config))
    keys = sorted(key for key in before.keys() | now.keys() if key not in free and before.get(key) != now.get(key))
    return ", ".join(f"{key} (was {before.get(key)!r}, now {now.get(key)!r})" for key in keys)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Within it no other process trains in the workdir, which is made. Raises UserError where one does."""
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            refused = stack.enter_context(files.locked(workdir, wait=False))
        except BlockingIOError as error:
            raise UserError(f"another process trains in {workdir}: wait for it, or use another --workdir") from error
        except OSError as error:
            raise UserError(f"--workdir: cannot write to {workdir}: {error.strerror}: choose another folder") from error
        if refused:
            say(f"{refused}: take care that no other process trains in {workdir}")
        yield


def check_same(workdir: Path, processes: Processes, job: Job) -> None:
    """Raises UserError where the processes of a run have other data, or no common workdir."""
    if not processes.several:
        return
    token = workdir / f".processes-{os.getpid()}-{time.time_ns()}"
    if processes.writes:
        token.touch()
    name = processes.gather("token", token.name)[0]
    splits = f"{job.train_split.fingerprint} {job.val_split.fingerprint} {job.placement['placement']}"
    said = processes.gather("workdir and data", f"{(workdir / name).exists()} {splits}")
    if processes.writes:
        token.unlink()
    for rank, text in enumerate(said):
        there, _, data = text.partition(" ")
        if there != "True":
            raise UserError(f"process {rank} does not see --workdir {workdir} of the first: use a disk that all share")
        if data != said[0].partition(" ")[2]:
            raise UserError(
                f"process {rank} has other images than process 0, or another placement of them: give all "
                "the same config.dataset.root, and set config.dataset.placement"
            )


def open_record(workdir: Path, job: Job) -> dict[str, Any]:
    """What a run tells in run.json as it begins; what an earlier part of it recorded on times and notes stays.

    Raises UserError where the data are not those that the run began with.
    """
    before = journal.read(workdir)
    former = before.get("data", {})
    data = {"train": {**describe(job.train_split, job.task), **job.placement}, "val": describe(job.val_split, job.task)}
    for name, split in data.items():
        if former.get(name, split).get("fingerprint") != split["fingerprint"]:
            raise UserError(f"the {name} images are not those that {workdir} was trained on: use another --workdir")
    plugins = job.config.plugins
    changed = changes(before.get("plugins", {}), plugins)
    for note in changed:
        say(note)
    return {
        **environment(),
        "data": data,
        "plugins": digests(plugins),
        "notes": list(dict.fromkeys((*before.get("notes", []), *job.notes, *changed))),
        "preprocessing": json.loads(inputs.encode(job.recipes[0].preprocessing)),
        "freeze": [],
        "memory": before.get("memory", {}),
        "features": before.get("features", {}),
        "timings": before.get("timings", {}),
    }


def write(workdir: Path, run: Mapping[str, Any]) -> None:
    """Writes what a run tells into run.json, beside what other commands have told there meanwhile."""
    with journal.changing(workdir) as known:
        data = known.get("data", {}) | run["data"]
        known.update({**run, "data": data, journal.READINGS: known.get(journal.READINGS, [])})


def environment() -> dict[str, Any]:
    """What run.json tells of the software and the devices."""
    devices = jax.local_devices()
    return {
        "versions": {"python": sys.version.split()[0], **versions()},
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "num_devices": len(devices),
        "git_revision": git_revision(),
    }


def split_of(workdir: Path) -> Path:
    """Where a run keeps the split that it drew."""
    return workdir / flat.RECORDED


def keep_split(workdir: Path, examples: Examples) -> None:
    """Writes the split that was drawn, if one was: later commands use it whatever comes to the folder."""
    if examples.drawn:
        files.write_csv(split_of(workdir), flat.COLUMNS, examples.drawn)


def begin_reading(workdir: Path, split: str) -> None:
    """Records a reading of the test split before it happens. Raises UserError where that is not possible."""
    if split == "test":
        journal.add_reading(workdir)


def end_reading(workdir: Path, examples: Examples, task: Task) -> None:
    """Records in run.json what was read. Raises UserError where the run has recorded other images of the split."""
    with journal.changing(workdir) as run:
        check_recorded(workdir, run, examples)
        run.setdefault("data", {}).setdefault(examples.split, describe(examples, task))


def add_external(workdir: Path, examples: Examples, task: Task, root: Path) -> None:
    """Records in run.json a reading of a set that is no split of the run's data, under the name of the set.

    Raises UserError where other images were recorded under that name.
    """
    with journal.changing(workdir) as run:
        told = run.setdefault("data", {}).setdefault(examples.split, {**describe(examples, task), "reads": []})
        if told["fingerprint"] != examples.fingerprint:
            raise UserError(
                f"{workdir / 'run.json'} has other images, or other labels of them, as {examples.split!r}: give "
                "another --name"
            )
        told["root"] = str(root)
        told["reads"].append(datetime.now(UTC).isoformat(timespec="seconds"))


def check_recorded(workdir: Path, run: Mapping[str, Any], examples: Examples) -> None:
    """Raises UserError where run.json has recorded other images of the split."""
    known = run.get("data", {}).get(examples.split, {})
    if known.get("fingerprint", examples.fingerprint) != examples.fingerprint:
        raise UserError(
            f"the {examples.split} images are not those recorded in {workdir / 'run.json'}: put the former ones back"
        )


def describe(examples: Examples, task: Task) -> dict[str, Any]:
    """What run.json tells of a split; its classes are counted as the task does it, in images or in pixels."""
    return {
        "num_examples": len(examples),
        "num_patients": len(set(examples.patients)),
        "patients_known": examples.patients_known,
        "fingerprint": examples.fingerprint,
        "classes": task.class_counts(examples),
        "bytes": task.num_bytes(examples),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
