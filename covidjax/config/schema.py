"""What the values of a config may be. Every check raises UserError: the key, its value, and what is allowed."""

import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from covidjax import losses, models, optim
from covidjax.errors import UserError
from covidjax.freeze.plan import BATCH_NORM_MODES
from covidjax.freeze.strategies import gradual_epochs
from covidjax.losses import MASK_LOSSES, mask_loss_function
from covidjax.models import mixture, preprocessing
from covidjax.ops import choose as operations

CHOICES: dict[str, tuple[str, ...]] = {
    "dataset.name": ("phantom", "folder", "tfds"),
    "dataset.crop": ("center", "pad", "squash"),
    "dataset.enhancement": ("none", "clahe"),
    "dataset.placement": ("auto", "device", "stream"),
    "model.name": (*models.NAMES, models.ENSEMBLE),
    "model.arrangement": ("torchvision", "keras"),
    "model.pooling": ("average", "max", "flatten"),
    "model.normalisation": ("batch", "none"),
    "model.head": ("original", "paper"),
    "model.stem": ("replicate", "fold"),
    "model.upsampling": ("transposed", "bilinear"),
    "preprocessing": preprocessing.CHOICES,
    "batch_norm": BATCH_NORM_MODES,
    "ensemble.mix": mixture.MIXES,
    "ensemble.weights": mixture.RULES,
    "ensemble.weights_from": ("val", "test"),
    "optimizer.name": optim.OPTIMIZERS,
    "optimizer.schedule": optim.SCHEDULES,
    "optimizer.schedule_from": ("start", "previous"),
    "loss.name": MASK_LOSSES,
    "precision": tuple(models.PRECISIONS),
    "prefix_precision": ("", "float32", "bfloat16"),
    "features": ("off", "auto", "on"),
    "parallel": ("jit", "pmap"),
    "ops": operations.CHOICES,
    "checkpoint.best": ("loss", "accuracy", "dice"),
}
# key: (lowest, highest, lowest itself allowed)
RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**31 - 1, True),
    "batch_size": (1, 1e9, True),
    "epochs": (1, 1e9, True),
    "evaluate_every_steps": (0, 1e9, True),
    "steps": (1, 1e9, True),
    "accumulation_steps": (1, 1e9, True),
    "ema_decay": (0, 0.99999, True),
    "feature_views": (0, 1000, True),
    "steps_per_call": (0, 1e6, True),
    "dataset.fold": (-1, 1e9, True),
    "dataset.image_size": (16, 1e5, True),
    "dataset.num_images": (12, 1e9, True),
    "model.dropout": (0, 0.99, True),
    "model.width": (1, 1e5, True),
    "model.num_blocks": (1, 16, True),
    "optimizer.learning_rate": (0, 1e6, False),
    "optimizer.clip_norm": (0, 1e9, True),
    "optimizer.weight_decay": (0, 1e6, True),
    "optimizer.pct_start": (0, 1, False),
    "loss.label_smoothing": (0, 0.99, True),
    "loss.focal_gamma": (0, 10, True),
    "loss.tversky_beta": (0, 1, True),
    "checkpoint.every_epochs": (1, 1e9, True),
    "checkpoint.keep": (2, 1e9, True),
    "augment.rotate": (0, 180, True),
    "augment.shift": (0, 1, True),
    "augment.scale": (0, 0.9, True),
    "augment.brightness": (0, 1, True),
    "augment.contrast": (0, 1, True),
    "augment.sharpen": (0, 1, True),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_several(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_low_and_high(value: Any) -> bool:
    return _is_several(value) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


def _pair(second: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The check of a text with a value beside it."""
    return lambda value: _is_several(value) and len(value) == 2 and _is_text(value[0]) and second(value[1])


# By the type of the default: the check of a value, and what is allowed.
KINDS: dict[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (_is_number, "a number"),
    tuple: (_is_several, "a tuple such as (1, 2)"),
    str: (_is_text, "text"),
}
# The keys that may have a value of another kind than their default.
EITHER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "optimizer.learning_rate": (
        lambda value: _is_number(value) or _is_low_and_high(value),
        "a number or a pair (low, high)",
    ),
} | {
    key: (lambda value: isinstance(value, str | tuple | list), "a name or a tuple")
    for key in ("freeze", "batch_norm", "loss.class_weights")
}
# What a tuple holds: the check of one element, and its description.
ELEMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "freeze": (_is_text, "patterns, such as ('stem', 'layer1/')"),
    "batch_norm": (
        _pair(lambda mode: mode in BATCH_NORM_MODES),
        f"pairs of a stage and one of {', '.join(BATCH_NORM_MODES)}, such as (('layer4', 'batch'),)",
    ),
    "lr_scale": (
        _pair(lambda factor: _is_number(factor) and factor > 0),
        "pairs of a pattern and a factor above 0, such as (('layer1', 0.01),)",
    ),
    "weight_decays": (
        _pair(lambda decay: _is_number(decay) and 0 <= decay <= 1e6),
        "pairs of a pattern and a decay from 0 to 1e+06, such as (('head', 0.1),)",
    ),
    "ema_decays": (
        _pair(lambda decay: _is_number(decay) and 0 <= decay <= 0.99999),
        "pairs of a pattern and a decay from 0 to 0.99999, such as (('head', 0.99),)",
    ),
    "ensemble.members": (_is_text, "workdirs, such as ('runs/a', 'runs/b')"),
    "dataset.mask_classes": (_is_text, "names of classes, such as ('background', 'lung')"),
    "dataset.oversample": (
        _pair(lambda times: type(times) is int),
        "pairs of a class and how often its images count, such as (('COVID-19', 17),)",
    ),
    "remat": (_is_text, "names of stages, such as ('layer1', 'layer2')"),
    "loss.class_weights": (
        lambda part: _is_number(part) or _pair(_is_number)(part),
        "numbers, one per class, or pairs of a class and its weight, such as (('covid19', 12.0),)",
    ),
    "optimizer.step_epochs": (lambda part: type(part) is int, "whole numbers, such as (30, 60)"),
}
# What a phase may change, and the keys that stand in phases only.
PHASE_KEYS = ("epochs", "steps", "freeze", "batch_norm", "optimizer", "lr_scale", "weight_decays")
PHASE_ONLY = {"steps": 100}


def check(config: ConfigDict, known: dict[str, Any]) -> None:
    """Checks every key and value of a config. known: flattened defaults."""
    given = dict(flatten(config))
    for key in given:
        if key not in known:
            raise UserError(unknown_key(key, known))
    for key, default in known.items():
        if key not in given:
            raise UserError(f"config.{key} is missing: start the config from covidjax.config.default_config()")
        check_value(f"config.{key}", key, given[key], default)
    if config.dataset.channels not in (1, 3):
        raise UserError(f"config.dataset.channels is {config.dataset.channels}: allowed are 1 (gray) and 3 (RGB)")
    if config.dataset.name == "folder" and not config.dataset.root:
        raise UserError("config.dataset.root is empty: give the folder that holds train/ val/ test/")
    if config.dataset.name == "tfds" and not config.dataset.root:
        raise UserError("config.dataset.root is empty: give the folder that launch/prepare.py wrote")
    _check_masks(config)
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"config.batch_size {config.batch_size} is not a multiple of config.accumulation_steps "
            f"{config.accumulation_steps}: choose a batch size that is"
        )
    for number, phase in enumerate(config.phases):
        _check_phase(f"config.phases[{number}]", phase, known)
    _check_gradual(config)
    _check_ensemble(config)


def _check_masks(config: ConfigDict) -> None:
    """Checks what masks need and what is for masks only."""
    names = tuple(config.dataset.mask_classes)
    if not 2 <= len(set(names)) == len(names) <= 256 or not all(names):
        raise UserError(
            f"config.dataset.mask_classes is {names!r}: allowed are 2 to 256 different names, the background first"
        )
    if models.task(config.model.name) == "segmentation":
        if config.dataset.oversample:
            raise UserError(
                "config.dataset.oversample repeats images of a class, and config.model.name is "
                f"{config.model.name!r}, whose images have masks and no class: leave it empty"
            )
        mask_loss_function(config.loss, None)
        return
    if config.checkpoint.best == "dice":
        raise UserError(
            f"config.checkpoint.best is 'dice', a figure of masks, and config.model.name is {config.model.name!r}, "
            "which labels whole images: allowed are loss, accuracy"
        )
    if config.loss.name not in losses.LOSSES:
        raise UserError(
            f"config.loss.name is {config.loss.name!r}, a loss of masks, and config.model.name is "
            f"{config.model.name!r}, which labels whole images: allowed are {', '.join(losses.LOSSES)}"
        )


def check_value(name: str, key: str, value: Any, default: Any) -> None:
    """Checks the value of a key, which the message calls `name`."""
    is_kind, allowed = EITHER.get(key) or KINDS[type(default)]
    right = is_kind(value)
    several = right and _is_several(value)
    if key in CHOICES and not several and not (right and value in CHOICES[key]):
        near = difflib.get_close_matches(str(value), CHOICES[key], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} is {value!r}: allowed are {', '.join(CHOICES[key])}{hint}")
    if not right:
        raise UserError(f"{name} is {value!r}: allowed is {allowed}, such as its default {default!r}")
    if key in ELEMENTS and several:
        is_right, allowed = ELEMENTS[key]
        if not all(is_right(part) for part in value):
            raise UserError(f"{name} is {value!r}: allowed are {allowed}")
    if key in RANGES:
        low, high, closed = RANGES[key]
        lowest, highest = (min(value), max(value)) if several else (value, value)
        if not (low <= lowest and highest <= high) or (lowest == low and not closed):
            raise UserError(f"{name} is {value!r}: allowed is {'from' if closed else 'above'} {low:g} to {high:g}")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a dotted key and its value."""
    for key in sorted(config.keys(), key=str):
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unknown_key(key: str, known: Any, name: str = "config") -> str:
    """What to say of a key that does not exist: the nearest one that does, and those beside it."""
    same_leaf = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    longer = [other for other in known if other.startswith(key)]
    near = difflib.get_close_matches(key, known, 1, cutoff=0.3)
    nearest = (difflib.get_close_matches(key, same_leaf or longer, 1, cutoff=0) or near or list(known))[0]
    owner = nearest.rpartition(".")[0]
    siblings = [other for other in known if other.rpartition(".")[0] == owner]
    group = f"{name}.{owner}" if owner else name
    return f"{name}.{key} does not exist: did you mean {name}.{nearest}? {group} has {', '.join(sorted(siblings))}"


def _check_phase(name: str, phase: Any, known: dict[str, Any]) -> None:
    if not isinstance(phase, dict | ConfigDict):
        raise UserError(f"{name} is {phase!r}: allowed is a dict with keys among {', '.join(PHASE_KEYS)}")
    if dotted := [key for key in phase if "." in str(key)]:
        raise UserError(f"{name} has the key {dotted[0]!r}: write {{'optimizer': {{'learning_rate': 1e-4}}}} instead")
    allowed = {key: value for key, value in known.items() if key.split(".")[0] in PHASE_KEYS} | PHASE_ONLY
    for key, value in flatten(phase):
        if key not in allowed:
            raise UserError(unknown_key(key, allowed, name))
        check_value(f"{name}.{key}", key, value, allowed[key])
    if "epochs" in phase and "steps" in phase:
        raise UserError(f"{name} has both epochs and steps: give one of them")
    if gradual_epochs(phase.get("freeze")) is not None:
        raise UserError(
            f"{name}.freeze is {phase['freeze']!r}, which is a run of phases itself: write it in config.freeze and "
            "leave config.phases empty, or write the phases with last:1, last:2 and so on"
        )


def _check_gradual(config: ConfigDict) -> None:
    epochs = gradual_epochs(config.freeze)
    if epochs is None:
        return
    if config.phases:
        raise UserError(f"config.freeze is {config.freeze!r}, which makes the phases itself: leave config.phases empty")
    if config.epochs < epochs:
        raise UserError(
            f"config.freeze is {config.freeze!r}, so the last stage alone trains for {epochs} epochs, but "
            f"config.epochs is {config.epochs}: at least {epochs} are needed, and {epochs} more for each further stage"
        )


def _check_ensemble(config: ConfigDict) -> None:
    if config.model.name != models.ENSEMBLE:
        return
    rule, split = config.ensemble.weights, config.ensemble.weights_from
    if rule == "equal" and split != "val":
        raise UserError(f"config.ensemble.weights_from is {split!r}, but no split decides equal weights: leave it out")
    if rule == "gradient" and not _is_number(config.optimizer.learning_rate):
        raise UserError(
            f"config.optimizer.learning_rate is {config.optimizer.learning_rate!r}, and a mixture has no stages to "
            "spread it over: give a number"
        )
    if rule == "gradient" and config.optimizer.schedule == "plateau":
        raise UserError("config.optimizer.schedule is 'plateau', which an ensemble does not have: choose another")
