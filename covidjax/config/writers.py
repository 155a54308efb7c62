"""Writers that plugins register: each gets the rows of `metrics.jsonl` as the run writes them."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from covidjax.registry import Registry

Row = Mapping[str, Any]
WriteRow = Callable[[Row], Any]
Make = Callable[[Path, Mapping[str, Any]], AbstractContextManager[WriteRow]]
Made = TypeVar("Made", bound=Make)

PLACE = ("step", "epoch", "phase", "split")  # what a row has beside its figures
WRITERS: Registry[Make] = Registry("writer", {})


def register_writer(name: str) -> Callable[[Made], Made]:
    """Registers a writer, which `config.writers` may then name.

    It stands on a context manager, (workdir, content of config.json) -> a function that is called with each row. A run
    that goes on calls it anew, and gives again the rows of steps that no checkpoint holds.
    """

    def register(make: Made) -> Made:
        WRITERS.add(name, make, make)
        return make

    return register


def figures(row: Row) -> dict[str, float]:
    """The figures of a row that are finite, under the names that TensorBoard has: `val/loss`."""
    return {
        f"{row['split']}/{name}": value
        for name, value in row.items()
        if name not in PLACE and value is not None and math.isfinite(value)
    }
