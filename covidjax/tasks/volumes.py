"""Volumes in stacks of slices, from the areas of their masks."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from covidjax import files
from covidjax.errors import UserError, some_of
from covidjax.tasks.base import RESEARCH_USE

LUNG = "lung"


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of a stack: its name, width and height, and the pixels of each class."""

    name: str
    size: tuple[int, int]
    areas: tuple[int, ...]


def check_spacing(spacing: Sequence[float]) -> None:
    """Raises UserError for a spacing that is not three numbers above 0."""
    if len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise UserError(f"the spacing of a stack is {tuple(spacing)}; allowed are three numbers above 0, in mm")


def stacks(slices: Sequence[Slice]) -> dict[str, list[Slice]]:
    """The slices of each folder, which is a stack; '.' is the folder that all lie below.

    Raises UserError where slices of one stack differ in size: they have no spacing in common.
    """
    found = collections.defaultdict(list)
    for one in slices:
        found[str(PurePosixPath(one.name).parent)].append(one)
    for name, members in found.items():
        if len(sizes := {one.size for one in members}) > 1:
            listed = some_of([f"{width} x {height}" for width, height in sorted(sizes)])
            raise UserError(f"--spacing: the slices in {name} have different sizes ({listed}): a stack has one")
    return dict(found)


def write_table(path: Path, slices: Sequence[Slice], classes: Sequence[str], spacing: Sequence[float]) -> None:
    """Writes a row for each stack: stack, slices, millilitres_<class> but for the background, fraction_of_lung.

    The last only where one of the classes is the lung: what the others take up of it, which includes them.
    spacing: millimetres from slice to slice, row to row and column to column. Raises UserError as `stacks` does.
    """
    has_lung = LUNG in classes[1:] and len(classes) > 2
    header = ["stack", "slices", *(f"millilitres_{name}" for name in classes[1:])]
    header += ["fraction_of_lung"] if has_lung else []
    rows = []
    for name, members in stacks(slices).items():
        pixels = np.sum([one.areas for one in members], axis=0)[1:]
        row = [name, len(members), *(float(count * math.prod(spacing) / 1000) for count in pixels)]
        if has_lung:
            within = int(pixels.sum())
            healthy = int(pixels[classes[1:].index(LUNG)])
            row.append((within - healthy) / within if within else "")
        rows.append([*row, RESEARCH_USE])
    files.write_csv(path, [*header, "use"], rows)
