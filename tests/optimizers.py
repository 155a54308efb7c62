"""The optimizer's settings, as the tests of rules and schedules change them."""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from covidjax.config import default_config

RATE = 2.0**-9  # exact in float32, in which Keras keeps its rate


def make_config(**changes: Any) -> ConfigDict:
    config = default_config().optimizer
    settings = {"learning_rate": RATE, "step_epochs": (3, 6), "plateau_factor": 0.7, "plateau_patience": 5}
    with config.unlocked():
        for key, value in (settings | changes).items():
            config[key] = value
    return config


def dtypes(tree: Any) -> list[Any]:
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


def one_cycle_by_hand(step: int, total: int, pct_start: float, peak: float) -> float:
    """torch.optim.lr_scheduler.OneCycleLR: the peak at step pct_start * total - 1, the end at the last step."""
    top = pct_start * total - 1
    if step <= top:
        start, end, fraction = peak / 25, peak, step / top
    else:
        start, end, fraction = peak, peak / 25 / 1e4, (step - top) / (total - 1 - top)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
