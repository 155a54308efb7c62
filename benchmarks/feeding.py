"""The training loop of a config with its data coming from different places, as subjects of measurements."""

import dataclasses
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.case import Case, Subject
from benchmarks.jax_subject import describe, parameter_counts, peak_bytes, train_subject
from covidjax import config as configs
from covidjax.data.augment import Augmentation
from covidjax.data.picture import ImageSpec, decode_image
from covidjax.errors import UserError
from covidjax.freeze import flops
from covidjax.mesh import divide, replicated
from covidjax.process import path_of
from covidjax.train import features, parallel
from covidjax.train.compiling import Compiling
from covidjax.train.features import PrefixFeatures
from covidjax.train.inputs import make_inputs
from covidjax.train.job import Job, describe_freeze
from covidjax.train.programs import Programs
from covidjax.train.setup import prepare
from covidjax.train.state import StepMetrics
from covidjax.train.step import train_step

# source: (config.dataset.placement, what it is)
SOURCES = {
    "synthetic": ("device", "one batch on the device over and over, not augmented: the step alone"),
    "augmented": ("device", "the same, augmented as the config says"),
    "resident": ("device", "the training loop, its images on the device"),
    "stream": ("stream", "the training loop, its decoded images on the host"),
    "stream_files": ("stream", "the training loop, its image files decoded for every batch"),
}
ENDLESS = 10**9  # steps


def build(case: Case) -> Subject:
    """A `case.Subject` of a source of SOURCES.

    options: config (JSON), source, whole_epochs (whether a sample begins and ends with an epoch).

    Raises UserError where the config has no such source.
    """
    options = dict(case.options)
    config, source = configs.from_json(json.loads(options["config"])), options["source"]
    if config.features == "on":
        raise UserError("config.features is on: allowed is off, since what is measured here is how images arrive")
    config.features = "off"
    if source == "stream_files" and config.dataset.name != "folder":
        raise UserError("stream_files decodes image files: allowed is config.dataset.name 'folder'")
    config.dataset.placement = SOURCES[source][0]
    job = prepare(config)
    if source in ("synthetic", "augmented"):
        return _bare(job, augmented=source == "augmented")
    return Loop(job, source, whole_epochs=options["whole_epochs"])


def _bare(job: Job, *, augmented: bool) -> Subject:
    """The step of a job on one batch."""
    recipe = job.recipes[0] if augmented else dataclasses.replace(job.recipes[0], augmentation=Augmentation())
    engine, size, state = job.config.parallel, job.config.batch_size, job.fresh_state()
    batch = {"image": np.array(job.train_split.images[:size]), "label": job.train_split.labels[:size]}
    inputs = jax.device_put(divide(batch, job.mesh, engine))
    counts = parameter_counts(state.params, recipe.plan.split(state.params)[0], state.opt_state)
    counts["flops"] = flops.count(partial(train_step, recipe=recipe), state, batch)
    step = parallel.mapped_step(recipe, job.mesh, engine, resident=False)
    return train_subject(step, state, (inputs,), counts, devices=job.mesh.size)


class Loop:
    """A `case.Subject`: what `covidjax.train.loop` does between two validations, over and over."""

    def __init__(self, job: Job, source: str, *, whole_epochs: bool) -> None:
        self._job, self._state, phase = job, job.fresh_state(), job.phases[0]
        variables = {"params": self._state.params, "batch_stats": self._state.batch_stats}
        programs = Programs()
        feed = make_inputs(
            job,
            phase,
            variables,
            PrefixFeatures(features.feature_store(job.config.dataset.cache_dir), job.mesh, programs),
        )
        if source == "stream_files":
            files = Files(path_of(job.config.dataset.root), job.train_split.names, job.config.dataset)
            feed = dataclasses.replace(feed, views=({**feed.views[0], "image": files},))
        table = describe_freeze(job, phase)
        self._compiling = Compiling(job, programs, [table["step_flops"]])
        self._count = count = self._compiling.steps_per_call(phase)
        began = time.perf_counter()
        program = self._compiling.wait(phase)
        seconds = time.perf_counter() - began
        span, config = (0, ENDLESS), job.config
        self._calls: Iterator[Any] = feed.calls(job.mesh, config.parallel, config.seed, config.batch_size, span, count)
        self._asked = self._taken = 0
        trainable, _ = job.recipes[0].plan.split(self._state.params)
        self._facts = {
            **describe(program.call, seconds),
            **parameter_counts(self._state.params, trainable, self._state.opt_state),
            "flops": table["step_flops"],
            "steps_per_call": count,
            "steps_per_sample": job.steps_per_epoch if whole_epochs else count,
            "num_images": len(job.train_split),
        }

    def facts(self) -> dict[str, Any]:
        """See `case.Subject`; flops are those of the plan table."""
        return self._facts

    def run(self, steps: int) -> None:
        """See `case.Subject`. Calls that take several steps may take some too many, which the next run need not."""
        job, phase = self._job, self._job.phases[0]
        self._asked += steps
        while self._taken < self._asked:
            count, arguments = next(self._calls)
            program = self._compiling.wait(phase, counted=count < self._count)
            self._state, _ = program.call(self._state, *arguments)
            parallel.throttle(self._state, job.mesh)
            self._taken += count
            if self._taken % job.steps_per_epoch == 0:
                jax.device_get(self._state.metrics)
                empty = jax.device_put(StepMetrics.empty(), replicated(job.mesh))
                self._state = dataclasses.replace(self._state, metrics=empty)
        jax.block_until_ready(self._state)

    def peak_bytes(self) -> int | None:
        """See `case.Subject`."""
        return peak_bytes()

    def profile(self, steps: int, folder: str) -> None:
        """See `case.Subject`."""
        with jax.profiler.trace(folder):
            self.run(steps)


class Files:
    """Image files that look like the array [n, height, width, channels] uint8 of their decoded images."""

    def __init__(self, root: Path, names: tuple[str, ...], dataset: ConfigDict) -> None:
        self._paths = np.array([str(root / name) for name in names])
        self._spec = ImageSpec.of(dataset)
        self.shape = (len(names), dataset.image_size, dataset.image_size, dataset.channels)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """rows: [batch] int -> [batch, height, width, channels] uint8, read and decoded now."""
        return np.stack([decode_image(Path(path).read_bytes(), self._spec)[0] for path in self._paths[rows]])
