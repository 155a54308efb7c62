"""Names of layers in files of PyTorch, for each network and each kind of file.

torchvision 0.20 `models/resnet.py`, `models/vgg.py`, `models/densenet.py`, `models/convnext.py`,
`models/vision_transformer.py`, `models/segmentation/deeplabv3.py`; timm 1.0 `models/vgg.py` (which keeps fc1 and fc2 as
convolutions), `models/convnext.py`, `models/vision_transformer.py`; transformers `models/dinov2`. torchxrayvision 1.5
has torchvision's names, the code of DINOv2 timm's.
"""

import re
from collections.abc import Collection
from typing import Any

from covidjax.errors import UserError
from covidjax.models.convnext import ConvNeXt
from covidjax.models.deeplab import RATES, DeepLabV3
from covidjax.models.densenet import DenseNet
from covidjax.models.layers import Staged
from covidjax.models.resnet import EncoderDecoder, ResNet
from covidjax.models.vgg import BLOCKS, VGG16
from covidjax.models.vit import ViT
from covidjax.weights.layers import Rules

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


def _numbered(text: str, *, times: int = 1, less: int = 1) -> Any:
    """A replacement with the number of the first group, times `times` less `less`."""
    return lambda found: text.format(times * int(found[1]) - less)


CONVNEXT: Rules = (
    ("^stem/conv", "features.0.0"),
    ("^stem/norm", "features.0.1"),
    ("^head/norm", "classifier.0"),
    ("^head/dense", "classifier.2"),
    (r"/block(\d+)", _numbered(".{}")),
    (r"^stage(\d)/downsample_norm", _numbered("features.{}.0", times=2, less=2)),
    (r"^stage(\d)/downsample_conv", _numbered("features.{}.1", times=2, less=2)),
    (r"^stage(\d)", _numbered("features.{}", times=2)),
    ("/conv$", ".block.0"),
    ("/norm$", ".block.2"),
    ("/mlp/dense1", ".block.3"),
    ("/mlp/dense2", ".block.5"),
    ("/layer_scale", ".layer_scale"),
)
TIMM_CONVNEXT: Rules = (
    ("^stem/conv", "stem.0"),
    ("^stem/norm", "stem.1"),
    ("^head/dense", "head.fc"),
    (r"/block(\d+)", _numbered(".blocks.{}")),
    (r"^stage(\d)", _numbered("stages.{}")),
    ("/downsample_norm", ".downsample.0"),
    ("/downsample_conv", ".downsample.1"),
    ("/conv$", ".conv_dw"),
    ("/norm$", ".norm"),
    ("/layer_scale", ".gamma"),
    (r"/mlp/dense(\d)", r".mlp.fc\1"),
)
VIT: Rules = (
    ("^stem/conv", "conv_proj"),
    ("^stem/class_token", "class_token"),
    ("^stem/position", "encoder.pos_embedding"),
    (r"^block\d+/norm$", "encoder.ln"),
    ("^head/dense", "heads.head"),
    (r"^block(\d+)", _numbered("encoder.layers.encoder_layer_{}")),
    (r"/norm(\d)", r".ln_\1"),
    ("/attention/out", ".self_attention.out_proj"),
    ("/attention/(query|key|value)", ".self_attention.in_proj"),
    ("/mlp/dense1", ".mlp.0"),
    ("/mlp/dense2", ".mlp.3"),
)
LINEAR = ((r"mlp\.0$", "mlp.linear_1"), (r"mlp\.3$", "mlp.linear_2"))  # as above: published, and renamed
TIMM_VIT: Rules = (
    ("^stem/conv", "patch_embed.proj"),
    ("^stem/class_token", "cls_token"),
    ("^stem/position", "pos_embed"),
    (r"^block\d+/norm$", "norm"),
    ("^head/dense", "head"),
    (r"^block(\d+)", _numbered("blocks.{}")),
    ("/attention/out", ".attn.proj"),
    ("/attention/(query|key|value)", ".attn.qkv"),
    (r"/layer_scale(\d)", r".ls\1.gamma"),
    (r"/norm(\d)", r".norm\1"),
    (r"/mlp/dense(\d)", r".mlp.fc\1"),
)
DINOV2: Rules = (
    ("^stem/conv", "embeddings.patch_embeddings.projection"),
    ("^stem/class_token", "embeddings.cls_token"),
    ("^stem/position", "embeddings.position_embeddings"),
    (r"^block\d+/norm$", "layernorm"),
    ("^head/dense", "classifier"),
    (r"^block(\d+)", _numbered("encoder.layer.{}")),
    ("/attention/out", ".attention.output.dense"),
    ("/attention/", ".attention.attention."),
    (r"/layer_scale(\d)", r".layer_scale\1.lambda1"),
    (r"/norm(\d)", r".norm\1"),
    (r"/mlp/dense(\d)", r".mlp.fc\1"),
)
TRANSFORMERS_5: Rules = (  # its own names of the attention; the published files are older
    ("/attention/out", ".attention.o_proj"),
    (r"/attention/(\w)\w+", r".attention.\1_proj"),
    *DINOV2,
)
# kinds of files: (a tensor that only such a file has, rules), the first for files that have none of these
KINDS: dict[type[Staged], tuple[tuple[str, Rules], ...]] = {
    VGG16: (("", VGG), ("pre_logits.fc1.weight", TIMM_VGG)),
    DenseNet: (("", DENSENET), ("features.denseblock1.denselayer1.norm.1.weight", (*DENSENET, DOTTED))),
    ConvNeXt: (("", CONVNEXT), ("stem.0.weight", TIMM_CONVNEXT)),
    ViT: (
        ("", VIT),
        ("encoder.layers.encoder_layer_0.mlp.linear_1.weight", (*VIT, *LINEAR)),
        ("patch_embed.proj.weight", TIMM_VIT),
        ("encoder.layer.0.attention.q_proj.weight", TRANSFORMERS_5),
        ("embeddings.patch_embeddings.projection.weight", DINOV2),
    ),
    DeepLabV3: (("", RESNET), ("backbone.conv1.weight", DEEPLAB)),
    ResNet: (("", RESNET),),
    EncoderDecoder: (("", RESNET),),
}


def rules_of(model: Staged, names: Collection[str] | None) -> Rules:
    """The rules for the names of a file's tensors; None: torchvision's, or of DINOv2 timm's.

    Raises UserError where there are none.
    """
    if isinstance(model, DeepLabV3) and names is None:
        return DEEPLAB
    for kind, files in KINDS.items():
        if isinstance(model, kind):
            first = TIMM_VIT if isinstance(model, ViT) and model.size.layer_scale else files[0][1]
            return next((rules for mark, rules in files[1:] if mark in (names or ())), first)
    raise UserError(f"there are no torchvision names for the network {type(model).__name__}")


def marks(model: Staged) -> list[str]:
    """A tensor of each kind of file that the network has beside the first."""
    return [mark for kind, files in KINDS.items() if isinstance(model, kind) for mark, _ in files[1:]]
