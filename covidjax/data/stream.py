"""Batches from the host, through Grain, for what does not fit on the device."""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from covidjax.data.order import batch_rows


def batches(
    views: Sequence[Any],
    turns: np.ndarray,
    seed: int,
    batch_size: int,
    own: np.ndarray,
    first_step: int,
    last_step: int,
) -> Iterator[Any]:
    """The batches of steps first_step .. last_step - 1, read ahead by two.

    views: trees of arrays [n, ...], such as {'image': uint8, 'label': int32}, possibly memory maps, that take turns
    from epoch to epoch. turns: the example of each turn of an epoch, see `batch_rows`. own: the rows of a batch that
    are read, which devices of this process hold. Each batch has the structure of a view, and the same examples in the
    same order that a resident split gives: the step alone says where to go on after a restart.
    """

    def batch(step: int) -> Any:
        examples, numbers = (rows[own] for rows in batch_rows(seed, step, turns, batch_size, len(views)))
        in_file_order = np.argsort(examples, kind="stable")  # a memory map reads fastest forwards
        places = [in_file_order[numbers[in_file_order] == number] for number in range(len(views))]

        def gather(*arrays: np.ndarray) -> np.ndarray:
            rows = np.empty((len(own), *arrays[0].shape[1:]), arrays[0].dtype)
            for array, place in zip(arrays, places, strict=True):
                if len(place):
                    rows[place] = array[examples[place]]
            return rows

        return jax.tree.map(gather, *views)

    # The default of 16 threads and 500 batches of read-ahead would hold gigabytes.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(first_step, last_step).map(batch).to_iter_dataset(options))
