"""How far a run has come, and whether it goes on."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from covidjax.train.job import Job


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """The part of a checkpoint beside the state: finished steps, seconds of training, the best validation so far.

    waited: validations at the ends of epochs of the last phase since one was better than all before.
    phase, phase_step: where the last checkpoint stands, for whoever looks into it.
    rewound: for each time that the run went back, the step of the checkpoint and the one that it went on from.
    """

    step: int = 0
    train_seconds: float = 0.0
    best: dict[str, float] | None = None
    waited: int = 0
    phase: int = 0
    phase_step: int = 0
    rewound: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """What a checkpoint tells. Raises TypeError for one of another version."""
        progress = cls(**stored)
        return dataclasses.replace(progress, rewound=tuple((first, last) for first, last in progress.rewound))


def stopped_early(job: Job, progress: RunProgress) -> bool:
    """Whether `config.early_stopping` ends a run where it stands."""
    return 0 < job.config.early_stopping.patience <= progress.waited


def early_stopping_notes(job: Job, progress: RunProgress) -> list[str]:
    """A note where `config.early_stopping` ended a run before its last step; none elsewhere."""
    if not stopped_early(job, progress) or progress.step >= job.last_step:
        return []
    best, reached = job.config.checkpoint.best, progress.step
    since = "" if progress.best is None else f"; the best is of epoch {progress.best['epoch']:.0f}"
    return [
        f"stopped early after step {reached} of {job.last_step}: no better validation {best} in {progress.waited} "
        f"epochs (config.early_stopping.patience){since}"
    ]


def images_per_second(steps: int, batch_size: int, seconds: float) -> float:
    """The rate of steps that took so long, without compilation, validation and checkpoints."""
    return round(steps * batch_size / max(seconds, 1e-9), 2)


def format_best(job: Job, best: dict[str, float] | None) -> str:
    """The best validation figures so far, for the progress line."""
    if best is None:
        return "-"
    return f"val {job.task.format_figures(best, job.config.checkpoint.best)} (epoch {best['epoch']:.0f})"
