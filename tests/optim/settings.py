"""Settings of an optimizer."""

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
