"""Tensor names of torchvision, and of timm where it differs.

torchvision 0.20 `models/resnet.py`, `models/vgg.py`, `models/segmentation/deeplabv3.py`; timm 1.0 `models/vgg.py`
keeps fc1 and fc2 as convolutions.
"""

from collections.abc import Collection, Iterator, Sequence

from covidjax.errors import UserError
from covidjax.models.deeplab import RATES, DeepLabV3
from covidjax.models.layers import Staged
from covidjax.models.resnet import BOTTLENECK, LAYERS, TORCHVISION, EncoderDecoder, ResNet
from covidjax.models.vgg import BLOCKS, VGG16
from covidjax.weights.load import Entry

NORM = (
    ("params", "scale", "weight"),
    ("params", "bias", "bias"),
    ("batch_stats", "mean", "running_mean"),
    ("batch_stats", "var", "running_var"),
)
# module of the decoder: its convolution and its BatchNorm; the pooling of `pooled` counts as the first of its branch.
DEEPLAB_DECODER = {
    "point": ("0.convs.0.0", "0.convs.0.1"),
    **{f"atrous{rate}": (f"0.convs.{number}.0", f"0.convs.{number}.1") for number, rate in enumerate(RATES, start=1)},
    "pooled": ("0.convs.4.1", "0.convs.4.2"),
    "project": ("0.project.0", "0.project.1"),
    "last": ("1", "2"),
}


def entries(model: Staged, names: Collection[str] | None = None) -> tuple[Entry, ...]:
    """The name map of a network.

    names: the tensors of the file; None: those of torchvision. A head that is not among them has no entries, nor has
    the paper's head of vgg16; of a U-Net the encoder has, and of a DeepLabV3 all, or where the file is a classifier's
    the encoder. The published files of DeepLabV3 also hold `aux_classifier.*`, which only their training used.
    Raises UserError for a network or an arrangement that torchvision does not have.
    """
    if isinstance(model, ResNet):
        if model.arrangement != TORCHVISION:
            raise UserError(
                "these weights have torchvision's names and the network is arranged as in Keras: set "
                "model.arrangement to 'torchvision' and take resnet18, resnet34, resnet50, resnet101 or resnet152"
            )
        backbone = tuple(resnet(model.num_blocks, bottleneck=model.bottleneck))
        head = tuple(dense("head/dense", "fc"))
    elif isinstance(model, EncoderDecoder):
        if isinstance(model, DeepLabV3) and (names is None or "backbone.conv1.weight" in names):
            return tuple(_deeplab(model))
        backbone, head = tuple(resnet(LAYERS[model.encoder], bottleneck=model.encoder in BOTTLENECK)), ()
    elif isinstance(model, VGG16):
        backbone = tuple(_vgg_features())
        head = tuple(_vgg_head(names)) if model.head_name == "original" else ()
    else:
        raise UserError(f"there are no torchvision names for the network {type(model).__name__}")
    return backbone if names is not None and not any(entry.source in names for entry in head) else backbone + head


def resnet(num_blocks: Sequence[int], *, bottleneck: bool, prefix: str = "") -> Iterator[Entry]:
    """The stages stem and layer1 .. layer4; prefix: what the file puts before each name, such as 'backbone.'."""
    yield from conv("stem/conv1", f"{prefix}conv1")
    yield from norm("stem/norm1", f"{prefix}bn1")
    for layer, count in enumerate(num_blocks, start=1):
        for block in range(1, count + 1):
            ours, theirs = f"layer{layer}/block{block}", f"{prefix}layer{layer}.{block - 1}"
            for number in range(1, 4 if bottleneck else 3):
                yield from conv(f"{ours}/conv{number}", f"{theirs}.conv{number}")
                yield from norm(f"{ours}/norm{number}", f"{theirs}.bn{number}")
            if block == 1 and (bottleneck or layer > 1):
                yield from conv(f"{ours}/shortcut_conv", f"{theirs}.downsample.0")
                yield from norm(f"{ours}/shortcut_norm", f"{theirs}.downsample.1")


def conv(path: str, source: str, *, bias: bool = False) -> Iterator[Entry]:
    """A convolution."""
    yield Entry(f"params/{path}/kernel", f"{source}.weight", "conv_oihw")
    if bias:
        yield Entry(f"params/{path}/bias", f"{source}.bias")


def norm(path: str, source: str) -> Iterator[Entry]:
    """A BatchNorm: its parameters and its running statistics."""
    for collection, leaf, name in NORM:
        yield Entry(f"{collection}/{path}/{leaf}", f"{source}.{name}")


def dense(path: str, source: str, layout: str = "dense_oi") -> Iterator[Entry]:
    """A dense layer."""
    yield Entry(f"params/{path}/kernel", f"{source}.weight", layout)
    yield Entry(f"params/{path}/bias", f"{source}.bias")


def _deeplab(model: DeepLabV3) -> Iterator[Entry]:
    yield from resnet(LAYERS[model.encoder], bottleneck=True, prefix="backbone.")
    for module, (convolution, normalisation) in DEEPLAB_DECODER.items():
        yield from conv(f"decoder/{module}/conv", f"classifier.{convolution}")
        yield from norm(f"decoder/{module}/norm", f"classifier.{normalisation}")
    yield from conv("head/conv", "classifier.4", bias=True)


def _vgg_features() -> Iterator[Entry]:
    index = 0
    for block, (_, num_convs) in enumerate(BLOCKS, start=1):
        for number in range(1, num_convs + 1):
            yield from conv(f"block{block}/conv{number}", f"features.{index}", bias=True)
            index += 2  # the convolution and its ReLU
        index += 1  # the maximum


def _vgg_head(names: Collection[str] | None) -> Iterator[Entry]:
    if names is not None and "pre_logits.fc1.weight" in names:
        yield from dense("head/dense1", "pre_logits.fc1", "conv_as_dense")
        yield from dense("head/dense2", "pre_logits.fc2", "conv_as_dense")
        yield from dense("head/dense3", "head.fc")
        return
    yield from dense("head/dense1", "classifier.0", "dense_from_chw:512,7,7")
    yield from dense("head/dense2", "classifier.3")
    yield from dense("head/dense3", "classifier.6")
