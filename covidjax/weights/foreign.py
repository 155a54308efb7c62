"""Tensors of a file that nothing takes: those that show another network, and those that may be left."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

# Counts of training steps, which torchvision's momentum 0.1 never reads.
COUNTERS = "num_batches_tracked"
MASKED = "mask_token"  # in the place of hidden patches, while DINOv2 learns
# How names of heads begin in PyTorch files, and of modules that stand beside a network or behind it.
HEADS = ("fc.", "classifier.", "aux_classifier.", "head.", "heads.", "pre_logits.")
BESIDE = (
    *HEADS,
    *("aux1.", "aux2.", "AuxLogits.", "aux_head.", "auxiliary_head.", "decode_head.", "decoder.", "segmentation_head."),
    *("projector.", "projection_head.", "predictor.", "optimizer", "dsn", "fuse/"),
)
OWN = ("params/", "batch_stats/")


def foreign(
    unused: Collection[str],
    tensors: Mapping[str, np.ndarray],
    taken: Mapping[str, str],
    *,
    replaced: Collection[str],
    stages: Collection[str],
    new_stages: Collection[str],
) -> list[str]:
    """The learnt tensors that stand inside a stage that is used: a network that has them computes something else.

    unused: names of tensors that nothing takes; integers are not learnt. taken: the stage by the name of each tensor
    that is taken. replaced: names that stages which are left new might have taken; in files of Keras these are known
    by number alone, and their place is proven. stages: of the network; new_stages: need not fit a file.
    What is outside all used stages is foreign where it is a convolution and no known neighbour of a network (`BESIDE`).
    """
    learnt = [
        name for name in unused if not name.endswith((COUNTERS, MASKED)) and tensors[name].dtype.kind not in "biu"
    ]
    backbone = [name for name, stage in taken.items() if stage not in new_stages]
    if all(name.startswith(OWN) for name in tensors):
        used = {*taken.values(), *(stage for stage in stages if stage not in new_stages)}
        return [name for name in learnt if name not in replaced and name.split("/")[1] in used]
    if any("/" not in name for name in tensors) or any("/layers/" in name for name in backbone):
        roots = {_root(name) for name in taken}
        return [
            name
            for name in learnt
            if name not in replaced
            and (_root(name) in roots or (tensors[name].ndim > 2 and not name.startswith(BESIDE)))
        ]
    numbered = any(name.startswith("layers/") for name in backbone)
    inside = _inside_numbered(tensors, backbone) if numbered else _inside_named(tensors, backbone)
    return [name for name in learnt if tensors[name].ndim > 2 or inside(name)]


def _root(name: str) -> str:
    return re.split(r"[./]", name, maxsplit=1)[0]


def _inside_named(tensors: Mapping[str, Any], backbone: Collection[str]) -> Callable[[str], bool]:
    """Whether a Keras layer bears the name of a stage ('conv2_...'), or stands between layers of the backbone."""
    places = {name: place for place, name in enumerate(tensors)}
    begin, end = (
        (min(map(places.__getitem__, backbone)), max(map(places.__getitem__, backbone))) if backbone else (0, 0)
    )
    stages = {name.partition("_")[0] for name in backbone}
    return lambda name: begin < places[name] < end or name.partition("_")[0] in stages


def _inside_numbered(tensors: Mapping[str, np.ndarray], backbone: Collection[str]) -> Callable[[str], bool]:
    """Whether a layer is of a class that makes the backbone, or a dense one that the features do not lead to.

    Numbers say nothing of a layer's place, but its size does: a head begins with the features of the last stage.
    """
    classes = {_class(name) for name in backbone}
    features = next((tensors[name].shape[-1] for name in reversed(list(backbone)) if tensors[name].ndim == 4), 1)
    kernels = [tensor.shape for name, tensor in tensors.items() if _class(name) == "dense" and tensor.ndim == 2]
    reached: set[int] = set()
    while new := {out for size, out in kernels if size % features == 0 or size in reached} - reached:
        reached |= new

    def inside(name: str) -> bool:
        if _class(name) != "dense":
            return _class(name) in classes
        size = tensors[name].shape[0]
        return size % features != 0 and size not in reached

    return inside


def _class(name: str) -> str:
    """'conv2d' of 'layers/conv2d_10/vars/0'; '' of a name of another form."""
    found = re.fullmatch(r"layers/(.+?)(_\d+)?/vars/\d+", name)
    return found[1] if found else ""
