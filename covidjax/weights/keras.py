"""Layer names of `keras.applications`, for the kinds of file that Keras writes.

A legacy `.h5` names its layers ('conv2_block1_1_conv/0' is the kernel); a `.weights.h5` numbers them by class in the
order of `model.layers` ('layers/conv2d_3/vars/0'), below its attributes in a model of a class of its own, whose blocks
are known here ('block1/layers/conv2d_1/vars/0'). Source of names and order: Keras 3.15 `applications/resnet.py`,
`vgg16.py`.
"""

import itertools
from collections.abc import Collection, Mapping
from typing import Any

from covidjax.errors import UserError
from covidjax.models.layers import Staged
from covidjax.models.resnet import TORCHVISION, ResNet
from covidjax.models.vgg import VGG16
from covidjax.weights.layers import Layers, Rules, layers, renamed
from covidjax.weights.load import Entry

RESNET: Rules = (
    ("^stem/(conv|norm)1", r"conv1_\1"),
    ("^layer4/norm", "post_norm"),
    ("^head/dense", "predictions"),
    (r"^layer(\d)/(block\d+)/", lambda found: f"conv{int(found[1]) + 1}_{found[2]}_"),
    ("shortcut_", "0_"),
    (r"(conv|norm)(\d)$", r"\2_\1"),
    ("norm$", "bn"),
)
PREACTIVATED: Rules = ((r"/norm1$", "/preact_norm"), (r"/norm2$", "/norm1"), (r"/norm3$", "/norm2"), *RESNET)
VGG: Rules = (("/conv", "_conv"), ("^head/dense3", "predictions"), ("^head/dense", "fc"))
HEAD = ("fc1", "fc2", "predictions")
# How names begin in a file by number, of a whole network and by block.
NUMBERED, BY_BLOCK = "layers/", "block1/layers/"


def entries(
    model: Staged, names: Collection[str] | None = None, variables: Mapping[str, Any] | None = None
) -> tuple[Entry, ...]:
    """The name map of a network.

    names: the tensors of the file, in its order; None: those of the published legacy file with its head. The names of
    the head differ between generations of Keras, so the layers that are no part of the backbone are taken for it in
    the order of the file. A file with another number of such layers has no entries for the head.
    Raises UserError for a network or an arrangement that Keras does not have.
    """
    rules = _rules(model)
    named = {renamed(path, rules): arrays for path, arrays in layers(model, variables).items()}
    head = [name for name in named if name in HEAD]
    backbone = {name: arrays for name, arrays in named.items() if name not in HEAD}
    if names is None:
        return _legacy(named)
    if isinstance(model, VGG16) and any(name.startswith(BY_BLOCK) for name in names):
        return _by_block(backbone)
    if any(name.startswith(NUMBERED) for name in names):
        dense_kernels = [name for name in names if name.startswith("layers/dense") and name.endswith("/vars/0")]
        return _numbered(named if len(dense_kernels) == len(head) else backbone)
    others = [name for name in dict.fromkeys(name.rpartition("/")[0] for name in names) if name not in backbone]
    if len(others) == len(head):
        backbone |= {other: named[name] for other, name in zip(others, head, strict=True)}
    return _legacy(backbone)


def _legacy(named: Layers) -> tuple[Entry, ...]:
    return tuple(Entry(path, f"{name}/{index}") for name, arrays in named.items() for index, path in enumerate(arrays))


def _numbered(named: Layers) -> tuple[Entry, ...]:
    of_class: dict[str, list[list[str]]] = {"conv2d": [], "batch_normalization": [], "dense": []}
    for name, arrays in named.items():
        kind = "dense" if name in HEAD else "batch_normalization" if name.endswith("bn") else "conv2d"
        of_class[kind].append(arrays)
    return _legacy(
        {
            f"{NUMBERED}{kind}{_numeral(number)}/vars": arrays
            for kind, every in of_class.items()
            for number, arrays in enumerate(every)
        }
    )


def _by_block(named: Layers) -> tuple[Entry, ...]:
    """Of a VGG, which has convolutions alone."""
    blocks = itertools.groupby(named.items(), lambda layer: layer[0].partition("_")[0])
    return _legacy(
        {
            f"{block}/layers/conv2d{_numeral(number)}/vars": arrays
            for block, convolutions in blocks
            for number, (_, arrays) in enumerate(convolutions)
        }
    )


def _numeral(number: int) -> str:
    return f"_{number}" if number else ""


def _rules(model: Staged) -> Rules:
    if isinstance(model, VGG16):
        return VGG
    if not isinstance(model, ResNet):
        raise UserError(f"there are no Keras names for the network {type(model).__name__}")
    if model.arrangement == TORCHVISION:
        raise UserError(
            "these weights have Keras' names and the network is arranged as in torchvision: set model.arrangement to "
            "'keras' and take resnet50, resnet101 or resnet152"
        )
    return PREACTIVATED if model.arrangement.preactivation else RESNET
