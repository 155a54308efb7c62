"""Batches from the host, through Grain, for what does not fit on the device."""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from covidjax.data.order import batch_indices, view_of


def batches(views: Sequence[Any], seed: int, batch_size: int, first_step: int, last_step: int) -> Iterator[Any]:
    """The batches of steps first_step .. last_step - 1, read ahead by two.

    views: trees of arrays [n, ...], such as {'image': uint8, 'label': int32}, possibly memory maps, that take turns
    from epoch to epoch. Each batch has the structure of a view and the same examples in the same order that a resident
    split gives: the step alone says where to go on after a restart.
    """
    num_examples = len(jax.tree.leaves(views[0])[0])

    def batch(step: int) -> Any:
        indices = batch_indices(seed, step, num_examples, batch_size)
        in_file_order = np.argsort(indices)  # a memory map reads fastest forwards

        def gather(array: np.ndarray) -> np.ndarray:
            rows = np.empty((batch_size, *array.shape[1:]), array.dtype)
            rows[in_file_order] = array[indices[in_file_order]]
            return rows

        return jax.tree.map(gather, views[view_of(step, num_examples, batch_size, len(views))])

    # The default of 16 threads and 500 batches of read-ahead would hold gigabytes.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(first_step, last_step).map(batch).to_iter_dataset(options))
