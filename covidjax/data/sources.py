"""A split of the data set that a config names."""

from typing import Any

from covidjax.data import folder, phantom
from covidjax.data.examples import Examples
from covidjax.errors import UserError

SPLITS = ("train", "val", "test")


def load(dataset: Any, split: str) -> Examples:
    """One decoded split of `config.dataset`; no file of another split is opened.

    Raises UserError for an unknown split or source and for all that is wrong with the files.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: allowed are {', '.join(SPLITS)}")
    source = {"phantom": phantom.load, "folder": folder.load}.get(dataset.name)
    if source is None:
        raise UserError(f"config.dataset.name is {dataset.name!r}: allowed are phantom, folder")
    return source(dataset, split)
