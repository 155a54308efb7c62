"""Networks as ordered, named stages, and the registry that builds them by name."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from covidjax.errors import UserError
from covidjax.models.cnn import CNN
from covidjax.models.deeplab import BACKBONES, DeepLabV3
from covidjax.models.layers import Numerics, Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.models.resnet import ARRANGEMENTS, BOTTLENECK, KERAS, KERAS_V2, LAYERS, PREACTIVATED, TORCHVISION, ResNet
from covidjax.models.unet import ENCODERS, UNet, UNetResNet
from covidjax.models.vgg import VGG16

CLASSIFIERS = ("cnn", "vgg16", *LAYERS, *PREACTIVATED)
SEGMENTATION = ("unet", *ENCODERS, *BACKBONES)
NAMES = (*CLASSIFIERS, *SEGMENTATION)
ENSEMBLE = "ensemble"  # the name of a mixture of trained networks, which is none itself
# precision: (dtype of activations, dtype of parameters and statistics)
PRECISIONS = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.float32),
    "float16": (jnp.float16, jnp.float32),  # with dynamic loss scaling, see train/loss_scale.py
    "float64": (jnp.float64, jnp.float64),
}


def labels(name: str) -> Literal["images", "pixels"]:
    """The things that a network or an ensemble of this name labels."""
    return "pixels" if name in SEGMENTATION else "images"


def build(model: Any, num_classes: int, precision: str, *, native: bool = False) -> Staged:
    """The network that `config.model` names, without parameters.

    native: whether its operations may be native ones, which `ops.choose` says.
    Raises UserError for an unknown name, and for an option that the network does not have.
    """
    if model.name == ENSEMBLE:
        raise UserError("model.name is 'ensemble', a mixture of trained networks that only launch/train.py makes")
    if model.name not in NAMES:
        raise UserError(f"model.name is {model.name!r}: allowed are {', '.join(NAMES)}")
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "dropout": model.dropout,
        "numerics": Numerics(*PRECISIONS[precision], native=native),
    }
    if model.name in SEGMENTATION:
        if model.normalised_features:
            raise UserError(f"model.normalised_features is for networks that label whole images, not for {model.name}")
        return _segmentation(model, common)
    common["normalised_features"] = model.normalised_features
    if model.name == "vgg16":
        return VGG16(head_name=model.head, **common)
    common["pooling"] = model.pooling
    if model.name == "cnn":
        return CNN(width=model.width, num_blocks=model.num_blocks, normalisation=model.normalisation, **common)
    name = PREACTIVATED.get(model.name, model.name)
    arrangement = KERAS_V2 if model.name in PREACTIVATED else ARRANGEMENTS[model.arrangement]
    bottleneck = name in BOTTLENECK
    if arrangement is KERAS and not bottleneck:
        raise UserError(
            f"model.arrangement is 'keras', which {name} does not have: allowed is 'torchvision', or the networks "
            f"{', '.join(BOTTLENECK)}"
        )
    return ResNet(num_blocks=LAYERS[name], bottleneck=bottleneck, arrangement=arrangement, **common)


def _segmentation(model: Any, common: dict[str, Any]) -> Staged:
    if model.name == "unet":
        return UNet(width=model.width, upsampling=model.upsampling, **common)
    if ARRANGEMENTS[model.arrangement] is not TORCHVISION:
        raise UserError(
            f"model.arrangement is {model.arrangement!r}, which {model.name} does not have: allowed is 'torchvision'"
        )
    if model.name in BACKBONES:
        return DeepLabV3(encoder=BACKBONES[model.name], **common)
    return UNetResNet(encoder=ENCODERS[model.name], upsampling=model.upsampling, attention=model.attention, **common)


def initialiser(
    model: Staged, preprocessing: Preprocessing, image_shape: tuple[int, int, int]
) -> Callable[[jax.Array], dict[str, Any]]:
    """The function from a key to fresh {'params', 'batch_stats'}."""

    def init(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key, preprocessing(jnp.zeros((1, *image_shape), model.numerics.param_dtype)))
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    return init
