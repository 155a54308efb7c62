"""Networks by name."""

from typing import Any

import jax.numpy as jnp

from covidjax.errors import UserError
from covidjax.models.cnn import CNN
from covidjax.models.layers import Staged
from covidjax.models.resnet import BOTTLENECK, LAYERS, ResNet

NAMES = ("cnn", *LAYERS)
# precision: (dtype of activations, dtype of parameters and statistics)
PRECISIONS = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.float32),
    "float64": (jnp.float64, jnp.float64),
}


def build(model: Any, num_classes: int, precision: str) -> Staged:
    """The network that `config.model` names, without parameters.

    Raises UserError for an unknown name or precision.
    """
    if model.name not in NAMES:
        raise UserError(f"model.name is {model.name!r}: allowed are {', '.join(NAMES)}")
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}: allowed are {', '.join(PRECISIONS)}")
    dtype, param_dtype = PRECISIONS[precision]
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "dropout": model.dropout,
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
    if model.name == "cnn":
        return CNN(width=model.width, num_blocks=model.num_blocks, **common)
    return ResNet(num_blocks=LAYERS[model.name], bottleneck=model.name in BOTTLENECK, **common)
