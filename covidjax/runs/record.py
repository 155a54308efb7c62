"""What a workdir says of its run: config.json and run.json, and whether a run may go on in it."""

import contextlib
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files
from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.process import git_revision
from covidjax.tasks.base import Task
from covidjax.train.setup import Job
from covidjax.weights import inputs

PACKAGES = ("covidjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "clu", "ml_collections", "numpy")
# A resumed run may differ in these: they change where data lies and what is kept, not what is computed.
FREE_TO_CHANGE = (
    "dataset.root",
    "dataset.cache_dir",
    "dataset.placement",
    "checkpoint.every_epochs",
    "checkpoint.keep",
)


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
        if changes := config_changes(former, config, FREE_TO_CHANGE):
            raise UserError(
                f"{workdir} holds a run of another config: {changes}: use another --workdir, or the former values"
            )


def config_changes(former: ConfigDict, config: ConfigDict, free: Sequence[str]) -> str:
    """The keys whose values differ, with both values, but for the `free` ones; empty where none does."""
    before, now = (dict(configs.flatten(configs.to_json(each))) for each in (former, config))
    keys = sorted(key for key in before.keys() | now.keys() if key not in free and before.get(key) != now.get(key))
    return ", ".join(f"{key} (was {before.get(key)!r}, now {now.get(key)!r})" for key in keys)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Within it no other process trains in the workdir, which is made. Raises UserError where one does."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        folder = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"--workdir: cannot write to {workdir}: {error.strerror}: choose another folder") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process trains in {workdir}: wait for it, or use another --workdir") from error
        yield
    finally:
        os.close(folder)


def open_record(workdir: Path, job: Job) -> dict[str, Any]:
    """The content of run.json as a run begins; what an earlier part of it recorded on times and test reads stays.

    Raises UserError where the data are not those that the run began with.
    """
    path = workdir / "run.json"
    before = files.read_json(path) if path.exists() else {}
    former = before.get("data", {})
    data = {"train": {**describe(job.train_split, job.task), **job.placement}, "val": describe(job.val_split, job.task)}
    for name, split in data.items():
        if name in former and former[name]["fingerprint"] != split["fingerprint"]:
            raise UserError(f"the {name} images are not those that {workdir} was trained on: use another --workdir")
    return {
        **environment(),
        "data": former | data,
        "notes": list(job.notes),
        "preprocessing": json.loads(inputs.encode(job.recipes[0].preprocessing)),
        "freeze": [],
        "memory": before.get("memory", {}),
        "features": before.get("features", {}),
        "timings": before.get("timings", {}),
        "test_reads": before.get("test_reads", []),
    }


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


def begin_reading(workdir: Path, split: str) -> dict[str, Any]:
    """The content of run.json; a reading of the test split is recorded in it before it happens."""
    run = files.read_json(workdir / "run.json")
    if split == "test":
        run["test_reads"].append(datetime.now(UTC).isoformat(timespec="seconds"))
        files.write_json(workdir / "run.json", run)
    return run


def end_reading(workdir: Path, run: dict[str, Any], examples: Examples, task: Task) -> None:
    """Records in run.json what was read. Raises UserError where the run has recorded other images of the split."""
    check_recorded(workdir, run, examples)
    run["data"].setdefault(examples.split, describe(examples, task))
    files.write_json(workdir / "run.json", run)


def check_recorded(workdir: Path, run: Mapping[str, Any], examples: Examples) -> None:
    """Raises UserError where run.json has recorded other images of the split."""
    known = run["data"].get(examples.split, {"fingerprint": examples.fingerprint})
    if known["fingerprint"] != examples.fingerprint:
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
