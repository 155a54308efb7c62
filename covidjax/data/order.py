"""Which examples make which batch: a pure function, so that placement and restarts change nothing."""

import numpy as np


def steps_per_epoch(num_turns: int, batch_size: int) -> int:
    """Full batches in an epoch; the turns left over are others in every epoch."""
    return num_turns // batch_size


def batch_indices(seed: int, step: int, num_turns: int, batch_size: int) -> np.ndarray:
    """The turns of a step's batch: [batch_size] int32, from the permutation that belongs to the step's epoch.

    step counts from 0 over the whole run. Where each example has one turn an epoch, these are the examples.
    """
    epoch, position = divmod(step, steps_per_epoch(num_turns, batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(num_turns)
    return order[position * batch_size : (position + 1) * batch_size].astype(np.int32)


def batch_rows(
    seed: int, step: int, turns: np.ndarray, batch_size: int, num_views: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The examples of a step's batch and which of their augmented views it sees, both [batch_size] int32.

    turns: [turns] int32, rising: the example of each turn of an epoch, see `Examples.turns`. The views of an example
    take turns from epoch to epoch, and within an epoch from one of its turns to the next.
    """
    chosen = batch_indices(seed, step, len(turns), batch_size)
    examples = turns[chosen]
    repetition = chosen - np.searchsorted(turns, examples).astype(np.int32)
    epoch = step // steps_per_epoch(len(turns), batch_size)
    return examples, (repetition + np.int32(epoch)) % np.int32(num_views)
