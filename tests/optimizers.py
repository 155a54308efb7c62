"""The optimizer's settings, as the tests of rules and schedules change them."""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

RATE = 2.0**-9  # exact in float32, in which Keras keeps its rate


def make_config(**changes: Any) -> ConfigDict:
    config = ConfigDict(
        {
            "name": "adam",
            "learning_rate": RATE,
            "momentum": 0.9,
            "nesterov": False,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "pct_start": 0.3,
            "step_epochs": (3, 6),
            "step_factor": 0.1,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "plateau_factor": 0.7,
            "plateau_patience": 5,
            "plateau_min_delta": 1e-4,
            "plateau_min_learning_rate": 0.0,
        }
    )
    config.update(changes)
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
