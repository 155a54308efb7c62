"""Tensor names of DeepLabV3 in torchvision 0.20, `models/segmentation/deeplabv3.py`."""

from collections.abc import Collection

from covidjax.models.deeplab import RATES, DeepLabV3
from covidjax.models.resnet import LAYERS
from covidjax.weights.entry import Entry
from covidjax.weights.torchvision import conv, norm, resnet

# module of the decoder: its convolution and its BatchNorm; the pooling of `pooled` counts as the first of its branch.
DECODER = {
    "point": ("0.convs.0.0", "0.convs.0.1"),
    **{f"atrous{rate}": (f"0.convs.{number}.0", f"0.convs.{number}.1") for number, rate in enumerate(RATES, start=1)},
    "pooled": ("0.convs.4.1", "0.convs.4.2"),
    "project": ("0.project.0", "0.project.1"),
    "last": ("1", "2"),
}


def entries(model: DeepLabV3, names: Collection[str] | None = None) -> tuple[Entry, ...]:
    """The name map. The published files also hold `aux_classifier.*`, which only their training used.

    names: the tensors of the file; a classifier's, whose names lack `backbone.`, fills stem and layer1 .. layer4 only.
    """
    num_blocks = LAYERS[model.encoder]
    if names is not None and "backbone.conv1.weight" not in names:
        return tuple(resnet(num_blocks, bottleneck=True))
    found = list(resnet(num_blocks, bottleneck=True, prefix="backbone."))
    for module, (convolution, normalisation) in DECODER.items():
        found += conv(f"decoder/{module}/conv", f"classifier.{convolution}")
        found += norm(f"decoder/{module}/norm", f"classifier.{normalisation}")
    return (*found, *conv("head/conv", "classifier.4", bias=True))
