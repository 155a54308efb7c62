"""Classes whose training images count several times in an epoch: `config.dataset.oversample`."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from covidjax.data.examples import Examples
from covidjax.errors import UserError

MOST = 1000

Pairs = Sequence[tuple[str, int]]


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
    if not times.keys() <= counts.keys() or len(times) < len(pairs) or not all(1 <= n <= MOST for n in times.values()):
        raise UserError(
            f"config.dataset.oversample is {tuple(map(tuple, pairs))!r}: allowed are pairs of a class, each once, and "
            f"a whole number from 1 to {MOST}; the classes are {', '.join(counts)}"
        )
    return sum((number - 1) * counts[name] for name, number in times.items())
