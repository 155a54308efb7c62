"""Figures of parts of a split, such as the images of one view or age band, with their intervals."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from covidjax.errors import UserError, some_of
from covidjax.metrics.comparison import Judged

FEW = 20  # patients, or images where patients are unknown, below which a group is called small
MOST = 20  # groups of a column
NUMBERS = 8  # distinct numbers of a column, above which it is cut at its quartiles
UNKNOWN = "not told"


def groups_of(column: str, texts: Sequence[str]) -> list[str]:
    """The group of each image, by the text of its column: the text itself, or of many numbers one of four ranges.

    Raises UserError for a column that is empty or has more than `MOST` values that are no numbers.
    """
    told = [text for text in texts if text]
    if not told:
        raise UserError(f"--by={column}: no image has a value in that column: name another one")
    values = _numbers(told)
    if values is None or len(set(values)) <= NUMBERS:
        if len(set(told)) > MOST:
            raise UserError(
                f"--by={column}: {len(set(told))} values, such as {some_of(sorted(set(told)))}: name a column of at "
                f"most {MOST}, or of numbers, which are cut at their quartiles"
            )
        return [text or UNKNOWN for text in texts]
    edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    names = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(edges)]
    names[-1] = names[-1].replace("below ", "")
    return [names[np.searchsorted(edges[1:-1], float(text), side="right")] if text else UNKNOWN for text in texts]


def figures(
    judged: Judged, clusters: np.ndarray, groups: Sequence[str], *, resamples: int = 1000
) -> list[dict[str, Any]]:
    """The figures of each group, in the order of their names, the one without a value last.

    clusters: [n] int of `bootstrap.clusters_of`; groups: n. Each: group, num_examples, num_clusters, small (fewer than
    `FEW` clusters), and every figure of `judged` with its interval, None where it is undefined, such as an AUROC
    where one class is there.
    """
    found = []
    for group in sorted(set(groups), key=lambda name: (name == UNKNOWN, _place(name))):
        inside = np.array([each == group for each in groups])
        own = np.unique(clusters[inside], return_inverse=True)[1]
        count = int(own.max()) + 1
        row: dict[str, Any] = {"group": group, "num_examples": len(own), "num_clusters": count, "small": count < FEW}
        row |= judged.among(inside).with_intervals(own, resamples=resamples)
        found.append(row)
    return found


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _place(name: str) -> tuple[float, str]:
    """Ranges and numbers by value, other names by letters."""
    first = _numbers([name.partition(" ")[0]])
    return (first[0] if first else np.inf, name)
