"""The work that all implementations do: networks and their sizes, batches, normalisation, optimizer constants.

Loss: the mean softmax cross-entropy over images, or over pixels for the networks that answer with masks. Optimizer:
Adam at LEARNING_RATE with the betas 0.9 and 0.999 that all share; each framework keeps its own epsilon (1e-7 covidjax
and Keras, 1e-8 optax and PyTorch), which costs nothing. Nothing is augmented.
"""

import dataclasses

import numpy as np

from benchmarks.case import Case
from covidjax.errors import UserError

LEARNING_RATE = 1e-4
SCALE, MEAN, STD = 1 / 255, 0.5, 0.25  # pixels to what the network takes: (pixels * SCALE - MEAN) / STD
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
DENSE_LAYERS = {"densenet121": (6, 12, 24, 16)}
CONVNEXTS = {  # blocks and features of each stage
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
VITS = {"vit_b16": (16, False), "vit_b14": (14, True)}  # pixels a side of a patch, scales of branches
PORTED = (*DENSE_LAYERS, *CONVNEXTS, *VITS)  # whose names in PyTorch are those of published files
VIT_BLOCKS, VIT_FEATURES, VIT_HEADS = 12, 768, 12
UNET_LEVELS = 4
UNET_RESNET_FEATURES = (256, 128, 64, 64, 32)
CNN_BLOCKS = 4
VGG_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # features, convolutions
VGG_HIDDEN = (1024, 1024)
MOMENTUM, EPSILON = 0.9, 1e-5  # of BatchNorm: the part of the running statistics that a step keeps


@dataclasses.dataclass(frozen=True)
class Network:
    """What the frameworks agree on: stages, input first; input channels; classes; width where it can be chosen.

    divisor: image sizes are its multiples, so that no map has an odd side where one is halved and doubled again.
    encoder: the last stage of the encoder, of networks that answer with masks.
    """

    stages: tuple[str, ...]
    channels: int = 3
    classes: int = 3
    width: int = 0
    divisor: int = 1
    pixelwise: bool = False
    encoder: str = ""


_UP_DOWN = (
    *(f"down{level}" for level in range(1, UNET_LEVELS + 1)),
    "middle",
    *(f"up{level}" for level in range(1, UNET_LEVELS + 1)),
    "head",
)
_CONVNEXT = Network(("stem", "stage1", "stage2", "stage3", "stage4", "head"), divisor=32)
_VIT_STAGES = ("stem", *(f"block{n}" for n in range(1, VIT_BLOCKS + 1)), "head")
_RESNET = Network((*RESNET_STAGES, "head"))
NETWORKS: dict[str, Network] = {
    "cnn": Network((*(f"block{n}" for n in range(1, CNN_BLOCKS + 1)), "head"), channels=1, width=16),
    "resnet18": _RESNET,
    "resnet34": _RESNET,
    "resnet50": _RESNET,
    "vgg16": Network((*(f"block{n}" for n in range(1, len(VGG_BLOCKS) + 1)), "head"), divisor=32),
    "densenet121": Network(("stem", "block1", "block2", "block3", "block4", "head"), divisor=32),
    **dict.fromkeys(CONVNEXTS, _CONVNEXT),
    **{name: Network(_VIT_STAGES, divisor=patch) for name, (patch, _) in VITS.items()},
    "unet": Network(_UP_DOWN, channels=1, classes=2, width=32, divisor=16, pixelwise=True, encoder="middle"),
    "unet_resnet34": Network(
        (*RESNET_STAGES, "decoder", "head"), classes=2, divisor=32, pixelwise=True, encoder=RESNET_STAGES[-1]
    ),
}


def network(model: str) -> Network:
    """Raises UserError for a network that is not benchmarked."""
    if model not in NETWORKS:
        raise UserError(f"there is no benchmark of {model!r}: allowed are {', '.join(NETWORKS)}")
    return NETWORKS[model]


def width(case: Case) -> int:
    """Features of the first stage, for cnn and unet."""
    return case.width or network(case.model).width


def batch(case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images [batch, size, size, channels] uint8 and labels [batch] or [batch, size, size] int32.

    Every class is there, as far as they go round.
    """
    net, random = network(case.model), np.random.default_rng(seed)
    shape: tuple[int, ...] = (case.batch_size, case.image_size, case.image_size)
    images = random.integers(0, 256, (*shape, net.channels), np.uint8)
    shape = shape if net.pixelwise else shape[:1]
    labels = random.permutation(np.arange(np.prod(shape)) % net.classes)
    return images, labels.reshape(shape).astype(np.int32)


def frozen_stages(case: Case) -> tuple[str, ...]:
    """The leading stages that `case.freeze` freezes, for the peers. Raises UserError for what they have not."""
    stages = network(case.model).stages
    name, _, stage = case.freeze.partition(":")
    if case.freeze == "none":
        return ()
    if case.freeze == "backbone":
        return stages[:-1]
    if name == "until" and stage in stages[:-1]:
        return stages[: stages.index(stage) + 1]
    raise UserError(
        f"freeze is {case.freeze!r}: allowed are none, backbone and until:<stage> with one of {', '.join(stages[:-1])}"
    )


def check(case: Case) -> None:
    """Raises UserError for a case that nobody can do."""
    net = network(case.model)
    if case.batch_size < 1 or case.image_size < 1:
        raise UserError(f"batch size {case.batch_size} and image size {case.image_size} must be 1 and more")
    if case.image_size % net.divisor:
        raise UserError(f"image size {case.image_size} does not suit {case.model}: take a multiple of {net.divisor}")
    if case.mode not in ("train", "inference"):
        raise UserError(f"mode is {case.mode!r}: allowed are train and inference")
