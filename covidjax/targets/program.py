"""A program that was compiled for a target: what it does, whether it fits, and how fast it can be at most."""

import dataclasses
import os
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from covidjax.errors import UserError
from covidjax.targets.catalog import GPU_SHARE, Target
from covidjax.targets.hlo import Counts, count, parse

FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a program, of one device.

    hlo: the optimised program as text, empty where the compiler refused for lack of memory, `refused` then says how.
    memory: bytes by name: temp, argument, output, alias, generated_code. seconds: what compiling took, whenever it was.
    known: whether it was kept from before.
    """

    target: Target
    hlo: str
    memory: dict[str, int]
    flops: float | None
    seconds: float
    refused: str
    known: bool

    @cached_property
    def counts(self) -> Counts:
        """What is counted from the text."""
        return count(parse(self.hlo))

    @property
    def bytes(self) -> int:
        """Memory that a device needs to run it: what comes in and goes out, counted once, and what is between."""
        memory = self.memory
        return memory["temp"] + memory["argument"] + memory["output"] - memory["alias"] + memory["generated_code"]

    @property
    def fits(self) -> bool:
        """Whether a device can hold it."""
        return not self.refused and self.bytes <= usable_bytes(self.target)


def usable_bytes(target: Target) -> int:
    """Memory of a device that a program may use; of a GPU the share that JAX takes, here as there."""
    try:
        share = float(os.environ.get(FRACTION, GPU_SHARE))
    except ValueError as error:
        raise UserError(f"{FRACTION} is {os.environ[FRACTION]!r}: allowed are numbers from 0 to 1") from error
    return target.usable_bytes(share)


def predicted_floor(program: Program, precision: str) -> float | None:
    """Seconds below which no step can take, as predicted: the slowest of what must be computed and moved.

    The larger of FLOPs over peak and bytes over memory bandwidth, and with it `predicted_exchange`. None where no peak
    of the precision is published.
    """
    chip, counts = program.target.chip, program.counts
    if precision not in chip.peak_flops:
        return None
    seconds = max(counts.flops / chip.peak_flops[precision], counts.bytes_accessed / chip.memory_bandwidth)
    return seconds + predicted_exchange(program)


def predicted_exchange(program: Program) -> float:
    """Seconds that what leaves a device in a step takes over its links, as predicted; 0 where none are published."""
    chip = program.target.chip
    if not chip.link_bandwidth:
        return 0.0
    return sum(each.sent(program.target.devices) for each in program.counts.collectives) / chip.link_bandwidth


class Largest(NamedTuple):
    """The largest batch a device whose program fits; 0 where not even one image does.

    needed_bytes: of that program; more_bytes: of the one with an image more, which does not fit. None where the
    compiler refused it, or there is none.
    """

    batch: int
    needed_bytes: int | None
    more_bytes: int | None


def largest_batch(compiled: Callable[[int], Program], start: int) -> Largest:
    """The largest batch of a device.

    compiled: the program of a batch a device. Bytes grow nearly in a line with the batch, so the next batch to try is
    where the line through two known ones meets the memory, between the largest that fits and the smallest that does
    not; halves where the compiler refused and told no bytes.
    """
    known: dict[int, Program] = {}

    def fits(batch: int) -> bool:
        known[batch] = compiled(batch)
        return known[batch].fits

    low, high = 0, start
    while fits(high):
        low, high = high, max(high + 1, _meeting(known, high, 8 * high))
    while high - low > 1:
        guess = _meeting(known, low, high)
        low, high = (guess, high) if fits(guess) else (low, guess)
    needed = [known[batch].bytes if batch and known[batch].memory else None for batch in (low, high)]
    return Largest(low, *needed)


def _meeting(known: dict[int, Program], low: int, high: int) -> int:
    """The batch between two that just fits, by the line through the two known programs nearest to it."""
    told = sorted((abs(batch - low), batch) for batch, program in known.items() if not program.refused)
    if len(told) < 2:
        return (low + high) // 2
    (_, first), (_, second) = told[:2]
    slope = (known[first].bytes - known[second].bytes) / (first - second)
    room = usable_bytes(known[first].target) - known[first].bytes
    guess = first + int(room // slope) if slope > 0 else (low + high) // 2
    return min(max(guess, low + 1), high - 1)
