"""Layer names of `keras.applications`, for the two kinds of file that Keras writes.

A legacy `.h5` names its layers ('conv2_block1_1_conv/0' is the kernel); a `.weights.h5` numbers them by class in the
order of `model.layers` ('layers/conv2d_3/vars/0'). Source of names and order: Keras 3.15 `applications/resnet.py`,
`vgg16.py`.
"""

import dataclasses
from collections.abc import Collection, Iterator
from itertools import count

from covidjax.errors import UserError
from covidjax.models.layers import Staged
from covidjax.models.resnet import TORCHVISION, Arrangement, ResNet
from covidjax.models.vgg import BLOCKS, HIDDEN, VGG16
from covidjax.weights.load import Entry

# kind of layer: its class in a .weights.h5, and our arrays in the order of its weights
KINDS = {
    "conv": ("conv2d", ("params/{}/kernel",)),
    "biased_conv": ("conv2d", ("params/{}/kernel", "params/{}/bias")),
    "norm": ("batch_normalization", ("params/{}/scale", "params/{}/bias", "batch_stats/{}/mean", "batch_stats/{}/var")),
    "dense": ("dense", ("params/{}/kernel", "params/{}/bias")),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with weights: its Keras name, its kind (a key of KINDS) and our path of it."""

    name: str
    kind: str
    path: str


def entries(model: Staged, names: Collection[str] | None = None) -> tuple[Entry, ...]:
    """The name map of a network.

    names: the tensors of the file, in its order; None: those of the published legacy file with its head. The names of
    the head differ between generations of Keras, so the layers that are no part of the backbone are taken for it in
    the order of the file. A file with another number of such layers has no entries for the head.
    Raises UserError for a network or an arrangement that Keras does not have.
    """
    layers = tuple(_layers(model))
    backbone = tuple(layer for layer in layers if layer.kind != "dense")
    head = tuple(layer for layer in layers if layer.kind == "dense")
    if names is None:
        return tuple(_legacy(layers))
    if any(name.startswith("layers/") for name in names):
        dense_kernels = [name for name in names if name.startswith("layers/dense") and name.endswith("/vars/0")]
        return tuple(_numbered(layers if len(dense_kernels) == len(head) else backbone))
    known = {layer.name for layer in backbone}
    others = [name for name in dict.fromkeys(name.rpartition("/")[0] for name in names) if name not in known]
    if len(others) != len(head):
        return tuple(_legacy(backbone))
    renamed = (dataclasses.replace(layer, name=name) for layer, name in zip(head, others, strict=True))
    return tuple(_legacy((*backbone, *renamed)))


def _legacy(layers: Collection[Layer]) -> Iterator[Entry]:
    for layer in layers:
        for index, pattern in enumerate(KINDS[layer.kind][1]):
            yield Entry(pattern.format(layer.path), f"{layer.name}/{index}")


def _numbered(layers: Collection[Layer]) -> Iterator[Entry]:
    numbers = {class_name: count() for class_name, _ in KINDS.values()}
    for layer in layers:
        class_name, patterns = KINDS[layer.kind]
        number = next(numbers[class_name])
        for index, pattern in enumerate(patterns):
            name = f"{class_name}_{number}" if number else class_name
            yield Entry(pattern.format(layer.path), f"layers/{name}/vars/{index}")


def _layers(model: Staged) -> Iterator[Layer]:
    """The layers with weights in the order of Keras' `model.layers`."""
    if isinstance(model, VGG16):
        yield from _vgg(model)
    elif isinstance(model, ResNet) and model.arrangement != TORCHVISION:
        yield from _resnet(model)
    elif isinstance(model, ResNet):
        raise UserError(
            "these weights have Keras' names and the network is arranged as in torchvision: set model.arrangement to "
            "'keras' and take resnet50, resnet101 or resnet152"
        )
    else:
        raise UserError(f"there are no Keras names for the network {type(model).__name__}")


def _vgg(model: VGG16) -> Iterator[Layer]:
    for block, (_, num_convs) in enumerate(BLOCKS, start=1):
        for number in range(1, num_convs + 1):
            yield Layer(f"block{block}_conv{number}", "biased_conv", f"block{block}/conv{number}")
    for number in range(1, len(HIDDEN[model.head_name]) + 1):
        yield Layer(f"fc{number}", "dense", f"head/dense{number}")
    yield Layer("predictions", "dense", f"head/dense{len(HIDDEN[model.head_name]) + 1}")


def _resnet(model: ResNet) -> Iterator[Layer]:
    rules = model.arrangement
    yield Layer("conv1_conv", _conv_kind(rules, "stem"), "stem/conv1")
    if not rules.preactivation:
        yield Layer("conv1_bn", "norm", "stem/norm1")
    for layer, num_blocks in enumerate(model.num_blocks, start=1):
        for block in range(1, num_blocks + 1):
            yield from _block(rules, f"conv{layer + 1}_block{block}", f"layer{layer}/block{block}", first=block == 1)
    if rules.preactivation:
        yield Layer("post_bn", "norm", "layer4/norm")
    yield Layer("predictions", "dense", "head/dense")


def _block(rules: Arrangement, theirs: str, ours: str, *, first: bool) -> Iterator[Layer]:
    """A bottleneck. Keras sorts layers by depth, so the shortcut stands beside the third convolution."""
    norm_names = ("preact_bn", "1_bn", "2_bn") if rules.preactivation else ("1_bn", "2_bn", "3_bn")
    convs = [Layer(f"{theirs}_{n}_conv", _conv_kind(rules, f"conv{n}"), f"{ours}/conv{n}") for n in (1, 2, 3)]
    norms = [Layer(f"{theirs}_{name}", "norm", f"{ours}/norm{n}") for n, name in enumerate(norm_names, start=1)]
    shortcut_conv = Layer(f"{theirs}_0_conv", _conv_kind(rules, "shortcut_conv"), f"{ours}/shortcut_conv")
    shortcut_norm = Layer(f"{theirs}_0_bn", "norm", f"{ours}/shortcut_norm")
    order = zip(norms, convs, strict=True) if rules.preactivation else zip(convs, norms, strict=True)
    for layer in (layer for pair in order for layer in pair):
        if first and layer == convs[-1]:
            yield shortcut_conv
        if first and layer == norms[-1] and not rules.preactivation:
            yield shortcut_norm
        yield layer


def _conv_kind(rules: Arrangement, name: str) -> str:
    return "biased_conv" if name in rules.biased else "conv"
