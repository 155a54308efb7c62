"""Checkpoints as all tests of them make them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from covidjax.checkpoint.checkpoint import Checkpoints


def open_checkpoints(directory: Path, **options: Any) -> Checkpoints:
    return Checkpoints(directory, **{"keep": 2, "higher_is_better": True, **options})


def save_steps(directory: Path, steps: Iterable[int], make_state: Callable[[int], Any]) -> None:
    with open_checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"epoch": step}, None)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
