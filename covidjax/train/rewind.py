"""Going back to a checkpoint after a step whose loss or gradient was not finite, and on behind that step."""

import dataclasses

import jax.numpy as jnp

from covidjax.checkpoint.saver import Saver, Snapshot
from covidjax.console import say
from covidjax.errors import UserError
from covidjax.mesh import place, replicated
from covidjax.train.job import Job
from covidjax.train.progress import RunProgress
from covidjax.train.state import StepMetrics, TrainState

MOST = 3  # of a run: it would else go on without learning


class NotFiniteError(UserError):
    """The loss or gradient of a step is not finite. step: the finished ones of the run before it."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def rewind(job: Job, saver: Saver, bad: NotFiniteError, progress: RunProgress) -> tuple[TrainState, RunProgress]:
    """What the network was at a checkpoint before a bad step, and the steps since left out: their batches are not seen.

    It is saved under the number of the step behind, so that a run that is killed goes on there too. Checkpoints of
    ends of epochs go before others, which only say when the run was stopped. Raises UserError where it has gone back
    too often, or no checkpoint of the phase is left.
    """
    checkpoints, (phase,) = saver.checkpoints, [p for p in job.phases if p.first_step <= bad.step < p.last_step]
    if len(progress.rewound) >= MOST:
        raise UserError(f"{bad}; config.nonfinite=rewind has gone back {MOST} times already") from bad
    saver.flush()
    known = [step for step in checkpoints.steps() if phase.first_step <= step <= bad.step]
    ends = {last for _, last in progress.rewound}
    good = [step for step in known if phase.ends_epoch(step) or step == phase.first_step or step in ends] or known
    if good:
        restored = checkpoints.restore(good[-1], job.abstract_state(good[-1]))
        state, former = restored.state, RunProgress.of(restored.progress)
        if good[-1] == phase.first_step:
            state = job.begin_phase(phase, state)
    elif phase.first_step == 0:
        state, former = job.fresh_state(), RunProgress()
    else:
        raise UserError(f"{bad}; no checkpoint of phase {phase.index} is left to go back to") from bad
    step = bad.step + 1
    fresh = place((jnp.asarray(step, jnp.int32), StepMetrics.empty()), replicated(job.mesh))
    state = dataclasses.replace(state, step=fresh[0], metrics=fresh[1])
    progress = dataclasses.replace(
        former,
        step=step,
        phase=phase.index,
        phase_step=step - phase.first_step,
        rewound=(*progress.rewound, (good[-1] if good else 0, step)),
    )
    saver.offer(Snapshot(step, state, dataclasses.asdict(progress), None), must=True)
    saver.flush()
    say(rewind_notes(progress)[-1])
    return state, progress


def rewind_notes(progress: RunProgress) -> list[str]:
    """A note for each time that a run has gone back."""
    return [
        f"the loss or its gradient was not finite in step {last}: back to what the network was at step {first}, and "
        f"steps {first + 1} to {last} are left out (config.nonfinite=rewind)"
        for first, last in progress.rewound
    ]
