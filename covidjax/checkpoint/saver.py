"""When checkpoints are written: often, but never for more than a tenth of the time."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from covidjax.checkpoint.checkpoint import Checkpoints

TIMES_LONGER = 9  # than the last save took must pass before the next one begins


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """A state that may be saved. metric: what the best goes by, or None."""

    step: int
    state: Any
    progress: Mapping[str, Any]
    metric: float | None


class Saver:
    """Writes the states it is offered, or passes over those that come too soon after the last save.

    The best state that was passed over stays in memory and is written before the next one, so that what is best on
    disk in the end does not depend on time; `flush` writes it where a run breaks off. What a kill loses is at most ten
    times the time of a save.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        best = checkpoints.best()
        self._best_score = best[0] if best else None
        self._passed: Snapshot | None = None
        self._began = math.inf

    def offer(self, offer: Snapshot, *, must: bool = False) -> None:
        """must: it is written in any case, as at the end of a phase. The buffers may be donated afterwards."""
        score = self.checkpoints.score(offer.metric)
        is_best = score is not None and (self._best_score is None or score >= self._best_score)
        if is_best:
            self._best_score, self._passed = score, None
        if must or self._all_due():
            self._began = time.monotonic()
            self.flush()
            self.checkpoints.save(offer.step, offer.state, offer.progress, offer.metric)
        elif is_best:
            copy = jax.tree.map(jnp.copy, offer.state)
            self._passed = dataclasses.replace(offer, state=copy, progress=dict(offer.progress))

    def flush(self) -> None:
        """Writes the best state that was passed over, if there is one, and waits for what is being written."""
        if self._passed is not None:
            passed, self._passed = self._passed, None
            self.checkpoints.save(passed.step, passed.state, passed.progress, passed.metric)
        self.checkpoints.wait()

    def _all_due(self) -> bool:
        """Whether it is time, by the clock of the first of several processes: all save the same."""
        due = self._is_due()
        return due if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.int32(due)))

    def _is_due(self) -> bool:
        begun, ended = self.checkpoints.last_save
        if ended is None:
            return False
        # What was passed over may have been written just before, and counts as well.
        return time.monotonic() >= ended + TIMES_LONGER * (ended - min(begun, self._began))
