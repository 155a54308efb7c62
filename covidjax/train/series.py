"""The figures of single steps, which stay on the device until they are told."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

SPLIT = "step"  # what stands for a split in the rows of steps
WHOLE_DIGITS = 3  # of the numbers of those steps of a phase that are told one and all


def is_told(number: int) -> bool:
    """Whether a step of a phase is told, by its number in it, from 1.

    Each of the first 1000, then every tenth up to 10 000, every hundredth up to 100 000, and so on: so what is told
    depends neither on the length of a run nor on where it was stopped.
    """
    return number % 10 ** max(0, len(str(number - 1)) - WHOLE_DIGITS) == 0


class StepSeries:
    """The figures of those steps of a phase that are to be told. index: of the phase; first_step: of it in the run.

    epoch: the finished epochs after so many steps of the run.
    """

    def __init__(self, index: int, first_step: int, epoch: Callable[[int], float]) -> None:
        self._phase, self._first_step, self._epoch = index, first_step, epoch
        self._waiting: list[tuple[int, list[int], dict[str, ArrayLike]]] = []

    def add(self, step: int, count: int, figures: dict[str, ArrayLike]) -> None:
        """Keeps the figures of steps, [] or [count or more] each. step: finished ones of the run before them."""
        begun = step - self._first_step
        if told := [index for index in range(count) if is_told(begun + index + 1)]:
            self._waiting.append((step, told, figures))

    def take(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl for all that was kept, which is kept no longer."""
        waiting, self._waiting = jax.device_get(self._waiting), []
        return [
            {
                "step": step + index + 1,
                "epoch": self._epoch(step + index + 1),
                "phase": self._phase,
                "split": SPLIT,
                **{name: float(np.atleast_1d(values)[index]) for name, values in figures.items()},
            }
            for step, told, figures in waiting
            for index in told
        ]
