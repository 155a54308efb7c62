"""Which examples make which batch: a pure function, so that placement and restarts change nothing."""

import numpy as np


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches in an epoch; the examples left over are others in every epoch."""
    return num_examples // batch_size


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of a step's batch: [batch_size] int32, from the permutation that belongs to the step's epoch.

    step counts from 0 over the whole run.
    """
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return order[position * batch_size : (position + 1) * batch_size].astype(np.int32)


def view_of(step: int, num_examples: int, batch_size: int, num_views: int) -> int:
    """Which of the augmented views of the examples a step's epoch sees: they take turns."""
    return step // steps_per_epoch(num_examples, batch_size) % num_views
