"""The layers of a network, of which each kind of file has its own names."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from covidjax.models.layers import Staged

Layers = dict[str, list[str]]
Rules = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
ORDER = ("kernel", "scale", "bias", "mean", "var")  # of the arrays of a layer, as Keras keeps its weights
ADAPTERS = ("lora_down", "lora_up")  # arrays that no published file has


def shapes(model: Staged) -> dict[str, Any]:
    """Those of the variables of a network for three channels, by tracing it."""
    return dict(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)))


def layers(model: Staged, variables: Mapping[str, Any] | None = None) -> Layers:
    """The arrays of each layer by path: {'stem/conv1': ['params/stem/conv1/kernel'], ...}.

    In the order of the stages and of the numbers in them. Keras sorts layers by depth, so a shortcut stands before the
    third convolution or normalisation; what has no number comes last.
    variables: of the network, or their shapes; None: it is traced for them, which takes a second of a deep one.
    """

    def place(path: str) -> tuple[int, list[float], int]:
        _, stage, *inside, leaf = path.split("/")
        numbers = [float(text.replace("shortcut", "2.5")) for text in re.findall(r"\d+|shortcut", "/".join(inside))]
        order = ORDER.index(leaf) if leaf in ORDER else len(ORDER)  # class tokens, positions and scales of branches
        return model.stages.index(stage), numbers or [math.inf], order

    variables = shapes(model) if variables is None else variables
    found: Layers = {}
    for path in sorted(traverse_util.flatten_dict(dict(variables), sep="/"), key=place):
        if path.endswith(ADAPTERS):
            continue
        found.setdefault(path.partition("/")[2].rpartition("/")[0], []).append(path)
    return found


def renamed(path: str, rules: Rules) -> str:
    """A path after all substitutions of (pattern, replacement), see `re.sub`."""
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path
