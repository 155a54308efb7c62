"""What a config asks for that does nothing, or not what it seems: notes before the first step."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util
from ml_collections import ConfigDict

from covidjax.config.effects import without_effect
from covidjax.train.features import Caching
from covidjax.train.phases import Phase
from covidjax.train.step import Recipe

NO_EFFECT = "these have no effect here: "
WARNING = "warning: "


def effect_notes(
    config: ConfigDict,
    phases: Sequence[Phase],
    recipes: Sequence[Recipe],
    caching: Sequence[Caching],
    variables: Mapping[str, Any],
) -> list[str]:
    """Notes on keys without effect, frozen random weights, and half precision on a CPU.

    recipes, caching: one a phase. variables: {'params', ...} of arrays or shapes.
    """
    idle = [*without_effect(config), *_patterns(phases, recipes), *_settings(config, recipes, caching)]
    notes = [NO_EFFECT + ", ".join(idle)] if idle else []
    notes += filter(None, [_random(config, recipes[0], variables), _half_precision(config)])
    return notes


def _patterns(phases: Sequence[Phase], recipes: Sequence[Recipe]) -> list[str]:
    """Patterns of which no phase trains a parameter that they are the first to match."""
    idle = []
    for name in ("lr_scale", "weight_decays", "ema_decays"):
        used: dict[str, bool] = {}
        for phase, recipe in zip(phases, recipes, strict=True):
            patterns = [pattern for pattern, _ in phase.settings[name]]
            paths = [leaf.path for leaf in recipe.plan.leaves if leaf.trains]
            if name == "ema_decays":
                paths += [statistic.path for statistic in recipe.plan.statistics]
            first = {next((one for one in patterns if re.search(one, path)), None) for path in paths}
            for pattern in patterns:
                used[pattern] = used.get(pattern, False) or pattern in first
        idle += [
            f"{name} of {pattern!r} (what it is for is frozen, or has an earlier pattern)"
            for pattern, has in used.items()
            if not has
        ]
    return idle


def _settings(config: ConfigDict, recipes: Sequence[Recipe], caching: Sequence[Caching]) -> list[str]:
    """Keys of frozen, cached and normalised stages where no phase has such."""
    idle = []
    plans = [recipe.plan for recipe in recipes]
    if config.prefix_precision and not any(plan.frozen_prefix for plan in plans):
        idle.append("prefix_precision (the first stage trains)")
    if config.feature_views and not recipes[0].augments:
        idle.append("feature_views (nothing is augmented)")
    elif config.feature_views and not any(each.placement for each in caching):
        idle.append("feature_views (no features are cached)")
    stages = () if isinstance(config.remat, str) else config.remat
    idle += [f"remat of {stage!r} (frozen)" for stage in stages if all(stage in plan.frozen_prefix for plan in plans)]
    if not config.sync_batch_norm and not any(plan.batch_norm_stages for plan in plans):
        idle.append("sync_batch_norm (no stage runs on batch statistics)")
    if config.batch_norm != "auto" and not plans[0].normalised_stages:
        idle.append("batch_norm (the network has none)")
    return idle


def _random(config: ConfigDict, recipe: Recipe, variables: Mapping[str, Any]) -> str:
    """A warning where the run begins with weights that are frozen as they were drawn."""
    sizes = {
        "/".join(path): math.prod(leaf.shape) for path, leaf in traverse_util.flatten_dict(variables["params"]).items()
    }
    frozen = [leaf.path for leaf in recipe.plan.leaves if not leaf.trains]
    if config.pretrained or not frozen:
        return ""
    return (
        f"{WARNING}{sum(map(sizes.__getitem__, frozen)):,} of {sum(sizes.values()):,} parameters are frozen at random "
        f"values in the first phase, as config.freeze is {recipe.plan.strategy!r} there and config.pretrained is '': "
        "give weights in config.pretrained, or train everything"
    )


def _half_precision(config: ConfigDict) -> str:
    """A note where a CPU computes in half precision."""
    used = sorted({config.precision, config.prefix_precision} & {"bfloat16", "float16"})
    if not used or jax.default_backend() != "cpu":
        return ""
    return (
        f"precision: {' and '.join(used)} is emulated on a CPU, where XLA's operations convert to float32 and back; "
        "native convolutions, which are of float32, do not run: it costs time, which config.precision=float32 saves"
    )
