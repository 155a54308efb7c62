"""A study: strategies x learning rates x seeds, each trial an ordinary run in a workdir of its own."""

import contextlib
import dataclasses
import hashlib
import itertools
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, models, tasks
from covidjax.checkpoint import journal
from covidjax.errors import Interrupted, UserError
from covidjax.freeze.strategies import value_of
from covidjax.models.preprocessing import Preprocessing
from covidjax.report.formats import duration
from covidjax.runs import record
from covidjax.tasks.base import Comparison, Task
from covidjax.train.phases import make_phases

Rate = float | tuple[float, float]  # as in config.optimizer.learning_rate
# What a trial sets in the config that all trials share.
VARIED = ("freeze", "optimizer.learning_rate", "seed")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a study. strategy: the text of the command, see `value_of`."""

    strategy: str
    learning_rate: Rate
    seed: int

    @property
    def name(self) -> str:
        """The name of its workdir. A colon is not kept: tools that take `path:argument` would stumble over it."""
        plain = self.strategy.replace(":", "-")
        readable = re.sub(r"[^A-Za-z0-9_+-]+", "-", plain)
        if readable != plain:  # patterns that differ in punctuation alone stay apart
            readable += "-" + hashlib.sha256(self.strategy.encode()).hexdigest()[:8]
        return f"{readable}_lr{rate_text(self.learning_rate, '-')}_seed{self.seed}"


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What is to be run, as `study.json` records it. config: what the trials share; see VARIED for the rest."""

    workdir: Path
    config: ConfigDict
    strategies: tuple[str, ...]
    learning_rates: tuple[Rate, ...]
    seeds: tuple[int, ...]

    @property
    def task(self) -> Task:
        """The kind of label."""
        return tasks.of(self.config.model.name, self.config.loss.name)

    @property
    def comparison(self) -> Comparison:
        """What its runs are compared by."""
        return self.task.comparison

    def folder(self, trial: Trial) -> Path:
        """The workdir of a trial."""
        return self.workdir / "runs" / trial.name

    def config_of(self, trial: Trial) -> ConfigDict:
        """The config with which launch/train.py would run the trial."""
        config = configs.from_json(configs.to_json(self.config))
        config.seed = trial.seed
        config.freeze = value_of(trial.strategy)
        config.optimizer.learning_rate = trial.learning_rate
        return config

    def trials(self) -> tuple[Trial, ...]:
        """All of them, those that can share features one after the other.

        Features can be shared by trials with the same frozen prefix and the same weights in it: those of pretrained
        weights are the same for every seed, random ones are not. Raises UserError for a strategy that the network
        does not have.
        """
        prefixes = [frozen_prefix(self.config_of(Trial(name, 1e-3, 0)), name) for name in self.strategies]
        first_alike = {name: prefixes.index(prefix) for name, prefix in zip(self.strategies, prefixes, strict=True)}

        def weights(trial: Trial) -> int:
            return 0 if self.config.pretrained else self.seeds.index(trial.seed)

        every = itertools.starmap(Trial, itertools.product(self.strategies, self.learning_rates, self.seeds))
        return tuple(sorted(every, key=lambda trial: (first_alike[trial.strategy], weights(trial))))


def rate_text(rate: Rate, between: str = " to ") -> str:
    """0.001 or, of a pair from the first to the last stage, '1e-05 to 0.001'."""
    return between.join(map(repr, rate)) if isinstance(rate, tuple) else repr(rate)


def frozen_prefix(config: ConfigDict, strategy: str) -> tuple[str, ...]:
    """The stages that the strategy keeps frozen from the start, of shapes alone: no data and no weights are read.

    Raises UserError for a strategy that the network does not have.
    """
    size, channels = config.dataset.image_size, config.dataset.channels
    model = models.build(config.model, 2, config.precision, lora_rank=configs.lora_rank(config))
    shapes = jax.eval_shape(models.initialiser(model, Preprocessing(), (size, size, channels)), jax.random.key(0))
    try:
        plans = [phase.plan(shapes, model.stages) for phase in make_phases(config, steps_per_epoch=1)]
    except UserError as error:
        raise UserError(f"--strategies: {strategy!r}: {error}") from error
    return plans[0].frozen_prefix


def check(study: Study) -> None:
    """Checks all that can be checked before anything is loaded or written. Raises UserError."""
    for key in ("strategies", "learning_rates", "seeds"):
        values = getattr(study, key)
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(f"--{key} names {twice[0]!r} twice: name each once")
    for number, phase in enumerate(study.config.phases):
        for key, _ in configs.flatten(phase):
            if key in VARIED:
                raise UserError(
                    f"config.phases[{number}] sets {key}, which differs between the runs of a study: leave it out there"
                )
    if configs.trains_on_val(study.config):
        raise UserError("config.phases ends with split 'train+val', and a study compares by validation: leave it out")
    for trial in study.trials():
        configs.validate(study.config_of(trial))


def open_workdir(study: Study) -> None:
    """Writes `study.json`, or checks that the one there is of the same study, to which trials may be added.

    Raises UserError, naming what differs, also where a run that is there has another config.
    """
    path = study.workdir / "study.json"
    if not path.exists() and (study.workdir / "config.json").exists():
        raise UserError(f"{study.workdir} is the workdir of a run: use another --workdir for a study")
    plan: dict[str, Any] = {
        "strategies": list(study.strategies),
        "learning_rates": [list(rate) if isinstance(rate, tuple) else rate for rate in study.learning_rates],
        "seeds": list(study.seeds),
        "config": configs.to_json(study.config),
    }
    if path.exists():
        before = files.read_json(path)
        if not isinstance(before, dict) or before.keys() != plan.keys():
            raise UserError(f"{path} is not the plan of a study: use another --workdir")
        free = (*VARIED, *record.FREE_TO_CHANGE)
        if changes := record.config_changes(configs.from_json(before["config"]), study.config, free):
            raise UserError(
                f"{study.workdir} holds a study of another config: {changes}: use another --workdir, or the former "
                "values"
            )
        for key in ("strategies", "learning_rates", "seeds"):
            if missing := [value for value in before[key] if value not in plan[key]]:
                raise UserError(
                    f"{study.workdir} holds a study that also has the {key} {', '.join(map(str, missing))}: name them "
                    "as well (more may be added), or use another --workdir"
                )
    for trial in study.trials():
        if (study.folder(trial) / "config.json").exists():
            record.open_workdir(study.folder(trial), study.config_of(trial))
    files.write_json(path, plan)


def run(
    study: Study, train: Callable[[ConfigDict, Path], Any], after: Callable[[dict[Trial, str]], Any]
) -> dict[Trial, str]:
    """Trains what is not finished, one after the other; returns the messages of the trials that failed.

    train: (config, workdir) -> anything, such as `covidjax.runs.train.train`. What it raises before it has written
    config.json, on the data or the weights, is a mistake of the whole study and passes; a later UserError, or memory
    that does not suffice, fails this trial. A failed trial is tried again by the same command.
    after: called with the messages so far when a trial has ended.
    """
    failures: dict[Trial, str] = {}
    trials = study.trials()
    seconds: dict[str, list[float]] = {}
    waiting = [trial for trial in trials if not is_finished(study.folder(trial))]
    for number, trial in enumerate(trials, 1):
        title, folder = f"run {number} of {len(trials)}: {trial.name}", study.folder(trial)
        if trial not in waiting:
            print(f"\n{title}: finished before", flush=True)
            continue
        print(f"\n{title}, ETA {_remaining(waiting, seconds)}", flush=True)
        began = time.monotonic()
        try:
            with record.locked(folder):
                train(study.config_of(trial), folder)
        except UserError as error:
            if not (folder / "config.json").exists():
                raise
            failures[trial] = str(error)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            failures[trial] = f"the memory of the device does not suffice: {str(error).splitlines()[0]}"
        else:
            seconds.setdefault(trial.strategy, []).append(time.monotonic() - began)
        if trial in failures:
            print(f"{trial.name} failed: {failures[trial]}", flush=True)
        waiting.remove(trial)
        after(failures)
    return failures


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises Interrupted at once, but for the steps of a run, which saves before it does so."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted("stopped: the same command goes on from there")

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def is_finished(folder: Path) -> bool:
    """Whether a workdir holds a run that came to its end: its times are recorded then, and its report comes last."""
    if not (folder / "report.html").exists():
        return False
    return "train_seconds" in journal.read(folder).get("timings", {})


def _remaining(waiting: Sequence[Trial], seconds: dict[str, list[float]]) -> str:
    """The time that the waiting trials take, each as long as those of its strategy did, or else as all did."""
    every = [value for values in seconds.values() for value in values]
    if not every:
        return "unknown"
    taken = (seconds.get(trial.strategy, every) for trial in waiting)
    return duration(sum(sum(values) / len(values) for values in taken))
