"""Plans of the networks, from the shapes of their variables; nothing is computed."""

import functools
from typing import Any

from covidjax.freeze.plan import FreezePlan, make_plan
from covidjax.models.layers import Staged
from tests.support import make_model, shapes_of, small_config

CNN_STAGES = ("block1", "block2", "block3", "block4", "head")
RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


@functools.cache
def shapes(name: str, num_classes: int = 3, channels: int = 1) -> tuple[Staged, dict[str, Any]]:
    """A network and the shapes of its variables; nothing is computed."""
    model = make_model(small_config(name), num_classes)
    return model, shapes_of(model, 64, channels)


def plan_of(name: str, strategy: Any, **options: Any) -> FreezePlan:
    model, variables = shapes(name)
    return make_plan(strategy, variables, model.stages, **options)
