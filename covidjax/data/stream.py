"""Batches from the host, through Grain, for splits that do not fit on the device."""

from collections.abc import Iterator

import grain
import numpy as np

from covidjax.data.examples import Examples
from covidjax.data.order import batch_indices


def batches(
    examples: Examples, seed: int, batch_size: int, first_step: int, last_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of steps first_step .. last_step - 1, read ahead by two.

    Each is {'image': [batch, height, width, channels] uint8, 'label': [batch] int32}, the same examples in the same
    order that a resident split gives: the step alone says where to go on after a restart.
    """

    def batch(step: int) -> dict[str, np.ndarray]:
        indices = batch_indices(seed, step, len(examples), batch_size)
        in_file_order = np.argsort(indices)  # a memory map reads fastest forwards
        images = np.empty((batch_size, *examples.images.shape[1:]), np.uint8)
        images[in_file_order] = examples.images[indices[in_file_order]]
        return {"image": images, "label": examples.labels[indices]}

    # The default of 16 threads and 500 batches of read-ahead would hold gigabytes.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(first_step, last_step).map(batch).to_iter_dataset(options))
