"""Networks by name."""

from typing import Any, Literal

import jax.numpy as jnp

from covidjax.errors import UserError
from covidjax.models.cnn import CNN, NORMALISATIONS
from covidjax.models.layers import POOLINGS, Staged
from covidjax.models.resnet import ARRANGEMENTS, BOTTLENECK, KERAS, KERAS_V2, LAYERS, PREACTIVATED, ResNet
from covidjax.models.segmentation import NAMES as SEGMENTATION
from covidjax.models.segmentation import build_segmentation
from covidjax.models.vgg import HIDDEN, VGG16

CLASSIFIERS = ("cnn", "vgg16", *LAYERS, *PREACTIVATED)
NAMES = (*CLASSIFIERS, *SEGMENTATION)
ENSEMBLE = "ensemble"  # the name of a mixture of trained networks, which is none itself
# precision: (dtype of activations, dtype of parameters and statistics)
PRECISIONS = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.float32),
    "float16": (jnp.float16, jnp.float32),  # with dynamic loss scaling, see train/loss_scale.py
    "float64": (jnp.float64, jnp.float64),
}


def task(name: str) -> Literal["classification", "segmentation"]:
    """What a network or an ensemble answers: one label for an image, or one for each of its pixels."""
    return "segmentation" if name in SEGMENTATION else "classification"


def build(model: Any, num_classes: int, precision: str, *, native: bool = False) -> Staged:
    """The network that `config.model` names, without parameters.

    native: whether its operations may be native ones, which `ops.native.choose` says.
    Raises UserError for an unknown name, precision or option, and for an arrangement that the network does not have.
    """
    if model.name == ENSEMBLE:
        raise UserError("model.name is 'ensemble', a mixture of trained networks that only launch/train.py makes")
    if model.name not in NAMES:
        raise UserError(f"model.name is {model.name!r}: allowed are {', '.join(NAMES)}")
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}: allowed are {', '.join(PRECISIONS)}")
    dtype, param_dtype = PRECISIONS[precision]
    if model.name in SEGMENTATION:
        if model.normalised_features:
            raise UserError(f"model.normalised_features is for networks that label whole images, not for {model.name}")
        return build_segmentation(model, num_classes, dtype, param_dtype, native)
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "normalised_features": model.normalised_features,
        "dropout": model.dropout,
        "dtype": dtype,
        "param_dtype": param_dtype,
        "native": native,
    }
    if model.name == "vgg16":
        _check("head", model.head, tuple(HIDDEN))
        return VGG16(head_name=model.head, **common)
    _check("pooling", model.pooling, POOLINGS)
    common["pooling"] = model.pooling
    if model.name == "cnn":
        _check("normalisation", model.normalisation, NORMALISATIONS)
        return CNN(width=model.width, num_blocks=model.num_blocks, normalisation=model.normalisation, **common)
    _check("arrangement", model.arrangement, tuple(ARRANGEMENTS))
    if model.name in PREACTIVATED:
        name, arrangement = PREACTIVATED[model.name], KERAS_V2
    else:
        name, arrangement = model.name, ARRANGEMENTS[model.arrangement]
    bottleneck = name in BOTTLENECK
    if arrangement is KERAS and not bottleneck:
        raise UserError(
            f"model.arrangement is 'keras', which {name} does not have: allowed is 'torchvision', or the networks "
            f"{', '.join(BOTTLENECK)}"
        )
    return ResNet(num_blocks=LAYERS[name], bottleneck=bottleneck, arrangement=arrangement, **common)


def _check(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"model.{key} is {value!r}: allowed are {', '.join(allowed)}")
