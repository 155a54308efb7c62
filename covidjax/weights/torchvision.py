"""The tensors of PyTorch files, of torchvision, timm and others, for the arrays of a network."""

from collections.abc import Collection, Mapping
from typing import Any

from covidjax.errors import UserError
from covidjax.models.layers import Staged
from covidjax.models.resnet import TORCHVISION, ResNet
from covidjax.models.unet import UNetResNet
from covidjax.models.vgg import VGG16
from covidjax.weights.layers import Rules, layers, renamed
from covidjax.weights.load import Entry
from covidjax.weights.torch_names import marks, rules_of

TENSORS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
LAYOUTS = {
    "classifier.0": "dense_from_chw:512,7,7",
    "pre_logits.fc1": "conv_as_dense",
    "pre_logits.fc2": "conv_as_dense",
}
ROLES = ("query", "key", "value")  # in the order of the tensors that hold all three
TOGETHER = {".in_proj": "_", ".qkv": "."}  # how their names end, and what joins them to that of the tensor
PRODUCTS = ("dense", "attention")  # in paths of matrix products


def entries(
    model: Staged, names: Collection[str] | None = None, variables: Mapping[str, Any] | None = None
) -> tuple[Entry, ...]:
    """The name map of a network.

    names: the tensors of the file; None: those of torchvision. A head that is not among them has no entries, nor has
    the paper's head of vgg16; of a U-Net the encoder has, and of a DeepLabV3 all, or where the file is a classifier's
    the encoder. The published files of DeepLabV3 also hold `aux_classifier.*`, which only their training used.
    Raises UserError for a network or an arrangement that torchvision does not have.
    """
    if isinstance(model, ResNet) and model.arrangement != TORCHVISION:
        raise UserError(
            "these weights have torchvision's names and the network is arranged as in Keras: set "
            "model.arrangement to 'torchvision' and take resnet18, resnet34, resnet50, resnet101 or resnet152"
        )
    rules = rules_of(model, names)
    found = [_entry(path, layer, rules) for layer, paths in layers(model, variables).items() for path in paths]
    backbone = [entry for entry in found if entry.path.split("/")[1] not in ("decoder", "head")]
    behind = {entry.source for entry in found} - {entry.source for entry in backbone}
    has_names = not isinstance(model, UNetResNet) and (not isinstance(model, VGG16) or model.head_name == "original")
    return tuple(found if has_names and (names is None or not behind.isdisjoint(names)) else backbone)


def alternatives(model: Staged, variables: Mapping[str, Any]) -> list[tuple[Entry, ...]]:
    """The name maps of the kinds of files that a network has, torchvision's first; each may lack a head."""
    return [entries(model, names, variables) for names in (None, (), *((mark,) for mark in marks(model)))]


def _entry(path: str, layer: str, rules: Rules) -> Entry:
    leaf = path.rpartition("/")[2]
    if leaf not in TENSORS:  # scales of branches, class tokens and positions are of no layer in PyTorch
        source = renamed(f"{layer}/{leaf}", rules)
        return Entry(path, source, "flat" if source.endswith(".layer_scale") else "same")
    name = renamed(layer, rules)
    for end, joint in TOGETHER.items():
        if name.endswith(end):
            role = ROLES.index(layer.rpartition("/")[2])
            return Entry(path, f"{name}{joint}{TENSORS[leaf]}", f"part:{role},{len(ROLES)}")
    layout = "same"
    if leaf == "kernel":
        product = any(part in layer for part in PRODUCTS)
        layout = LAYOUTS.get(name, "dense_oi" if product else "conv_oihw")
    return Entry(path, f"{name}.{TENSORS[leaf]}", layout)
