"""Tensor names of torchvision, and of timm where it differs.

torchvision 0.20 `models/resnet.py`, `models/vgg.py`, `models/densenet.py`, `models/segmentation/deeplabv3.py`; timm 1.0
`models/vgg.py` keeps fc1 and fc2 as convolutions. torchxrayvision 1.5 has torchvision's names.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from covidjax.errors import UserError
from covidjax.models.deeplab import RATES, DeepLabV3
from covidjax.models.densenet import DenseNet
from covidjax.models.layers import Staged
from covidjax.models.resnet import TORCHVISION, EncoderDecoder, ResNet
from covidjax.models.unet import UNetResNet
from covidjax.models.vgg import BLOCKS, VGG16
from covidjax.weights.layers import Rules, layers, renamed
from covidjax.weights.load import Entry

TENSORS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
LAYOUTS = {
    "classifier.0": "dense_from_chw:512,7,7",
    "pre_logits.fc1": "conv_as_dense",
    "pre_logits.fc2": "conv_as_dense",
}
RESNET: Rules = (
    ("stem/", ""),
    (r"/block(\d+)/", lambda found: f".{int(found[1]) - 1}."),
    ("shortcut_conv", "downsample.0"),
    ("shortcut_norm", "downsample.1"),
    ("norm", "bn"),
    ("^head/dense", "fc"),
)
DEEPLAB: Rules = (
    ("^(?=stem|layer)", "backbone."),
    ("^decoder/point/", "classifier.0.convs.0."),
    (r"^decoder/atrous(\d+)/", lambda found: f"classifier.0.convs.{RATES.index(int(found[1])) + 1}."),
    ("^decoder/pooled/conv", "classifier.0.convs.4.1"),  # the pooling counts as the first of its branch
    ("^decoder/pooled/norm", "classifier.0.convs.4.2"),
    ("^decoder/project/", "classifier.0.project."),
    (r"\.conv$", ".0"),
    (r"\.norm$", ".1"),
    ("^decoder/last/conv", "classifier.1"),
    ("^decoder/last/norm", "classifier.2"),
    ("^head/conv", "classifier.4"),
    *RESNET,
)
DENSENET: Rules = (
    (r"^stem/(conv|norm)1", r"features.\g<1>0"),
    (r"^block(\d)/layer(\d+)/", r"features.denseblock\1.denselayer\2."),
    (r"^block(\d)/transition_", r"features.transition\1."),
    ("^block4/norm", "features.norm5"),
    ("^head/dense", "classifier"),
)
DOTTED = (r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2")  # what torchvision publishes, and renames when it loads


def _feature(found: re.Match[str]) -> str:
    """The number of a convolution among itself, a ReLU behind each, and a maximum behind each block."""
    block, number = int(found[1]), int(found[2])
    return f"features.{sum(2 * count + 1 for _, count in BLOCKS[: block - 1]) + 2 * (number - 1)}"


FEATURES = (r"^block(\d)/conv(\d)", _feature)
VGG: Rules = (
    FEATURES,
    ("^head/dense1", "classifier.0"),
    ("^head/dense2", "classifier.3"),
    ("^head/dense3", "classifier.6"),
)
TIMM_VGG: Rules = (FEATURES, ("^head/dense3", "head.fc"), ("^head/dense", "pre_logits.fc"))


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
    found = []
    for layer, paths in layers(model, variables).items():
        name = renamed(layer, _rules(model, names))
        for path in paths:
            leaf = path.rpartition("/")[2]
            layout = LAYOUTS.get(name, "dense_oi" if "dense" in layer else "conv_oihw") if leaf == "kernel" else "same"
            found.append(Entry(path, f"{name}.{TENSORS[leaf]}", layout))
    backbone = [entry for entry in found if entry.path.split("/")[1] not in ("decoder", "head")]
    behind = {entry.source for entry in found} - {entry.source for entry in backbone}
    has_names = not isinstance(model, UNetResNet) and (not isinstance(model, VGG16) or model.head_name == "original")
    return tuple(found if has_names and (names is None or not behind.isdisjoint(names)) else backbone)


def _rules(model: Staged, names: Collection[str] | None) -> Rules:
    if isinstance(model, VGG16):
        return TIMM_VGG if names is not None and "pre_logits.fc1.weight" in names else VGG
    if isinstance(model, DenseNet):
        return (*DENSENET, DOTTED) if "features.denseblock1.denselayer1.norm.1.weight" in (names or ()) else DENSENET
    if isinstance(model, DeepLabV3) and (names is None or "backbone.conv1.weight" in names):
        return DEEPLAB
    if isinstance(model, ResNet | EncoderDecoder):
        return RESNET
    raise UserError(f"there are no torchvision names for the network {type(model).__name__}")
