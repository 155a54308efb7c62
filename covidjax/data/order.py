"""Which examples make which batch: a pure function, so that placement and restarts change nothing.

An image of a class in `config.dataset.oversample` has several turns in an epoch.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from covidjax.data.examples import Examples
from covidjax.errors import UserError, some_of

MOST_TURNS = 1000
Pairs = Sequence[tuple[str, int]]


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


def oversampled(examples: Examples, pairs: Pairs) -> Examples:
    """A training split in which each image of a class counts as often as its pair says; nothing is copied.

    Raises UserError for pairs that `more_turns` refuses.
    """
    if not pairs:
        return examples
    numbers = np.bincount(examples.labels, minlength=len(examples.classes)).tolist()
    counts = dict(zip(examples.classes, numbers, strict=True))
    turns, times = len(examples) + more_turns(counts, pairs), dict(pairs)
    repeats = np.array([times.get(name, 1) for name in examples.classes], np.int32)[examples.labels]
    told = ", ".join(f"each of {counts[name]} images of {name} counts {times[name]} times" for name in times)
    note = (
        f"oversampling: {told}; an epoch has {turns} examples of {len(examples)} training images, and balanced class "
        "weights go by these"
    )
    return dataclasses.replace(examples, repeats=repeats, notes=(*examples.notes, note))


def more_turns(counts: Mapping[str, int], pairs: Pairs) -> int:
    """The examples of an epoch of training beyond the images. counts: training images of each class.

    Raises UserError for a class that is not there, or twice, and for a number that is not from 1 to 1000.
    """
    times = dict(pairs)
    known = times.keys() <= counts.keys() and len(times) == len(pairs)
    if not known or not all(1 <= number <= MOST_TURNS for number in times.values()):
        raise UserError(
            f"config.dataset.oversample is {tuple(map(tuple, pairs))!r}: allowed are pairs of a class, each once, and "
            f"a whole number from 1 to {MOST_TURNS}; the classes are {some_of(counts)}"
        )
    return sum((number - 1) * counts[name] for name, number in times.items())
