"""Networks as ordered, named stages, and the registry that builds them by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from covidjax.errors import UserError
from covidjax.models import convnext, densenet, vit
from covidjax.models.cnn import CNN
from covidjax.models.convnext import ConvNeXt
from covidjax.models.deeplab import BACKBONES, DeepLabV3
from covidjax.models.densenet import DenseNet
from covidjax.models.layers import Numerics, Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.models.resnet import ARRANGEMENTS, BOTTLENECK, KERAS, KERAS_V2, LAYERS, PREACTIVATED, TORCHVISION, ResNet
from covidjax.models.unet import ENCODERS, UNet, UNetResNet
from covidjax.models.vgg import VGG16
from covidjax.models.vit import ViT
from covidjax.registry import Own, Range, Registry

TRANSFORMERS = (*convnext.SIZES, *vit.SIZES)  # or what has their residual branches
CLASSIFIERS = ("cnn", "vgg16", *LAYERS, *PREACTIVATED, *densenet.LAYERS, *TRANSFORMERS)
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
Labels = Literal["images", "pixels"]
Made = TypeVar("Made", bound=Callable[..., Staged])


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A name of `config.model.name`. labels: what it labels; build: (config.model, common keywords) -> the network."""

    labels: Labels
    build: Callable[[Any, dict[str, Any]], Staged]


def register_model(name: str, *, labels: Labels = "images", **ranges: Range) -> Callable[[Made], Made]:
    """Makes a `Staged` subclass, or a function that gives one, a network of that name: a decorator.

    It is called with num_classes, numerics and dropout, with the keys of `config.model` that it takes by name, and with
    `config.model.options`, pairs of another parameter of it and a value. labels: what its logits are of; ranges: the
    least and the greatest value of an option. Raises UserError for a name that another network has.
    """

    def register(function: Made) -> Made:
        own = Own(function, ranges)
        MODELS.add(name, Network(labels, lambda model, common: _registered(own, model, common)), function)
        return function

    return register


def labels(name: str) -> Labels:
    """The things that a network or an ensemble of this name labels."""
    return MODELS[name].labels if name in MODELS else "images"


# Keys of `config.model` that some of the package's networks have and others do not, and which each has.
SOME_HAVE = (
    "width",
    "num_blocks",
    "normalisation",
    "arrangement",
    "pooling",
    "head",
    "blocks",
    "upsampling",
    "attention",
    "decoder",
    "stochastic_depth",
)
OPTIONS: dict[str, tuple[str, ...]] = {
    "cnn": ("width", "num_blocks", "normalisation", "pooling"),
    "vgg16": ("head", "blocks"),
    "unet": ("width", "upsampling"),
    **dict.fromkeys(ENCODERS, ("upsampling", "attention", "decoder")),
    **dict.fromkeys(BACKBONES, ()),
    **dict.fromkeys(LAYERS, ("pooling", "arrangement")),
    **dict.fromkeys((*PREACTIVATED, *densenet.LAYERS), ("pooling",)),
    **dict.fromkeys(convnext.SIZES, ("pooling", "stochastic_depth")),
    **dict.fromkeys(vit.SIZES, ("stochastic_depth",)),
}


def options(name: str) -> tuple[str, ...]:
    """Those of SOME_HAVE that a network reads; a registered one may read all."""
    return OPTIONS.get(name, SOME_HAVE)


def build(model: Any, num_classes: int, precision: str, *, native: bool = False, lora_rank: int = 0) -> Staged:
    """The network that `config.model` names, without parameters.

    native: whether its operations may be native ones, which `ops.choose` says. lora_rank: of adapters beside its
    dense kernels, as `freeze.strategies.lora_rank` says; 0 for none.
    Raises UserError for an unknown name, for an option that the network does not have, and adapters in none.
    """
    if model.name == ENSEMBLE:
        raise UserError("model.name is 'ensemble', a mixture of trained networks that only launch/train.py makes")
    network = MODELS.find(model.name, "model.name")
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "dropout": model.dropout,
        "numerics": Numerics(*PRECISIONS[precision], native=native),
    }
    built = network.build(model, common)
    if not lora_rank:
        return built
    if not hasattr(built, "lora_rank"):
        raise UserError(
            f"freeze 'lora:{lora_rank}' trains adapters beside dense kernels, which {model.name} does not have: "
            f"allowed are {', '.join(TRANSFORMERS)}"
        )
    return dataclasses.replace(built, lora_rank=lora_rank)  # type: ignore[call-arg]


def _registered(own: Own, model: Any, common: dict[str, Any]) -> Staged:
    for name in ("dropout", "normalised_features"):
        if model[name] and name not in own.options:
            raise UserError(f"model.{name} is {model[name]!r}, which {model.name} does not take: leave it out")
    shared = {name: model[name] for name in model if name not in ("name", "options")} | common
    network = own.function(**own.keywords("model", model.options, shared))
    if not isinstance(network, Staged):
        raise UserError(
            f"the network {model.name!r} is a {type(network).__name__}: allowed is a covidjax.models.layers.Staged, "
            "see docs/add-a-model.md"
        )
    return network


def _classifier(model: Any, common: dict[str, Any]) -> Staged:
    common = common | {"normalised_features": model.normalised_features}
    if model.name == "vgg16":
        return VGG16(head_name=model.head, num_blocks=model.blocks, **common)
    if model.name in vit.SIZES:
        return ViT(size=vit.SIZES[model.name], stochastic_depth=model.stochastic_depth, **common)
    common["pooling"] = model.pooling
    if model.name in convnext.SIZES:
        return ConvNeXt(size=convnext.SIZES[model.name], stochastic_depth=model.stochastic_depth, **common)
    if model.name == "cnn":
        return CNN(width=model.width, num_blocks=model.num_blocks, normalisation=model.normalisation, **common)
    if model.name in densenet.LAYERS:
        return DenseNet(num_layers=densenet.LAYERS[model.name], **common)
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
    if model.normalised_features:
        raise UserError(f"model.normalised_features is for networks that label whole images, not for {model.name}")
    if model.name == "unet":
        return UNet(width=model.width, upsampling=model.upsampling, **common)
    if ARRANGEMENTS[model.arrangement] is not TORCHVISION:
        raise UserError(
            f"model.arrangement is {model.arrangement!r}, which {model.name} does not have: allowed is 'torchvision'"
        )
    if model.name in BACKBONES:
        return DeepLabV3(encoder=BACKBONES[model.name], **common)
    decoder = {"upsampling": model.upsampling, "attention": model.attention, "decoder_name": model.decoder}
    return UNetResNet(encoder=ENCODERS[model.name], **decoder, **common)


MODELS: Registry[Network] = Registry(
    "model",
    {name: Network("images", _classifier) for name in CLASSIFIERS}
    | {name: Network("pixels", _segmentation) for name in SEGMENTATION},
)


def initialiser(
    model: Staged, preprocessing: Preprocessing, image_shape: tuple[int, int, int]
) -> Callable[[jax.Array], dict[str, Any]]:
    """The function from a key to fresh {'params', 'batch_stats'}."""

    def init(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key, preprocessing(jnp.zeros((1, *image_shape), model.numerics.param_dtype)))
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    return init
