"""Loss and learning rate along the steps of an epoch, for the curves of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covidjax.train.state import StepMetrics, TrainState
from covidjax.train.step import Recipe

POINTS = 100  # of an epoch at most: longer ones have means over several steps


class StepCurve:
    """Keeps the sums of an epoch at its points, on the device, where nothing waits for them.

    A point is the end of a call of the program, or the first such end behind each hundredth of an epoch of more steps.
    """

    def __init__(self, epoch_steps: int) -> None:
        self._epoch_steps, self._stride = epoch_steps, -(-epoch_steps // POINTS)
        self._points: list[tuple[int, Any]] = []

    def begin(self, step: int, sums: StepMetrics) -> None:
        """From here on: after so many steps of the run, and with these sums of the epoch so far."""
        self._points = [(step, self._copy(sums))]

    def add(self, step: int, sums: StepMetrics) -> None:
        """After a call that ended at this step of the run; a later call takes the memory of `sums`, which is copied."""
        passed = step // self._stride > self._points[-1][0] // self._stride
        if passed or step % self._epoch_steps == 0:
            self._points.append((step, self._copy(sums)))

    def records(self, phase: int, recipe: Recipe, state: TrainState) -> list[dict[str, Any]]:
        """A record of each point since `begin`: the mean loss since the point before, and the rate of the last step.

        NaN where loss scaling has skipped every step.
        """
        (steps, sums), scale = zip(*self._points, strict=True), float(state.plateau.scale)
        losses, counts = np.asarray(jax.device_get(sums), np.float64).T
        own = np.asarray(steps[1:])
        rates = np.broadcast_to(np.asarray(recipe.learning_rate(own - 1 - recipe.schedule_start)), own.shape) * scale
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.diff(losses) / np.diff(counts)
        return [
            {
                "step": int(step),
                "epoch": int(step) / self._epoch_steps,
                "phase": phase,
                "split": "step",
                "loss": float(mean),
                "learning_rate": float(rate),
            }
            for step, mean, rate in zip(own, means, rates, strict=True)
        ]

    @staticmethod
    def _copy(sums: StepMetrics) -> tuple[jax.Array, jax.Array]:
        return jnp.copy(sums.loss), jnp.copy(sums.steps)
