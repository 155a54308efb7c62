"""ResNets with a block of each kind, two in the first layer: what is shown of them holds of more of the same."""

from typing import Any

from covidjax.models.resnet import LAYERS
from covidjax.runs import targets

FEW = dict.fromkeys(("resnet34", "resnet50"), (2, 1, 1, 1))


def lowered(devices: list[Any], **arguments: Any) -> Any:
    """`runs.targets.lowered` with these networks, in the process that compiles, which has no pytest."""
    LAYERS.update(FEW)
    return targets.lowered(devices, **arguments)
