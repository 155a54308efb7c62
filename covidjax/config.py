"""The config of a run: defaults, overrides from the command line, and the checks before anything is loaded."""

import ast
import difflib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from covidjax import losses, models, optim
from covidjax.errors import UserError

CHOICES: dict[str, tuple[str, ...]] = {
    "dataset.name": ("phantom", "folder"),
    "dataset.crop": ("center", "pad", "squash"),
    "dataset.placement": ("auto", "device", "stream"),
    "model.name": models.NAMES,
    "model.arrangement": ("torchvision", "keras"),
    "model.pooling": ("average", "max", "flatten"),
    "model.head": ("original", "paper"),
    "model.stem": ("replicate", "fold"),
    "model.upsampling": ("transposed", "bilinear"),
    "batch_norm": ("auto", "batch", "running"),
    "optimizer.name": optim.OPTIMIZERS,
    "optimizer.schedule": optim.SCHEDULES,
    "loss.name": losses.LOSSES,
    "precision": tuple(models.PRECISIONS),
    "checkpoint.best": ("loss", "accuracy"),
}
# key: (lowest, highest, lowest itself allowed)
RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**31 - 1, True),
    "batch_size": (1, 1e9, True),
    "epochs": (1, 1e9, True),
    "accumulation_steps": (1, 1e9, True),
    "ema_decay": (0, 0.99999, True),
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
    "checkpoint.every_epochs": (1, 1e9, True),
    "checkpoint.keep": (2, 1e9, True),
    "augment.rotate": (0, 180, True),
    "augment.shift": (0, 1, True),
    "augment.scale": (0, 0.9, True),
    "augment.brightness": (0, 1, True),
    "augment.contrast": (0, 1, True),
}
# A value of one of these kinds may stand where the default has the other.
TEXT_OR_TUPLE = ("freeze", "loss.class_weights")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_factor(value: Any) -> bool:
    pair = isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str) and _is_number(value[1])
    return pair and value[1] > 0


# What a tuple holds: the check of one element, and its description.
ELEMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "freeze": (lambda part: isinstance(part, str), "patterns, such as ('stem', 'layer1/')"),
    "lr_scale": (_is_factor, "pairs of a pattern and a factor above 0, such as (('layer1', 0.01),)"),
    "loss.class_weights": (_is_number, "numbers, one per class"),
    "optimizer.step_epochs": (lambda part: type(part) is int, "whole numbers, such as (30, 60)"),
}
PHASE_KEYS = ("epochs", "freeze", "batch_norm", "optimizer", "lr_scale")


def default_config() -> ConfigDict:
    """Every key that exists, with its default; the type of the default is the type of the key."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32  # images per optimizer step, over all devices
    config.epochs = 10
    config.precision = "float32"
    config.pretrained = ""  # an id of the catalog, a file of weights, or the workdir of an earlier run
    config.freeze = FieldReference("none", field_type=object)  # a name, or a tuple of patterns
    config.batch_norm = "auto"
    config.lr_scale = ()
    config.phases = ()
    config.accumulation_steps = 1
    config.ema_decay = 0.0  # 0: no moving average of the trained parameters

    config.dataset = ConfigDict()
    config.dataset.name = "phantom"
    config.dataset.root = ""
    config.dataset.fold = -1
    config.dataset.image_size = 128
    config.dataset.channels = 1
    config.dataset.crop = "center"
    config.dataset.placement = "auto"
    config.dataset.skip_bad = False
    config.dataset.cache_dir = ""
    config.dataset.seed = 0
    config.dataset.num_images = 600

    config.model = ConfigDict()
    config.model.name = "cnn"
    config.model.width = 16
    config.model.num_blocks = 4
    config.model.dropout = 0.0
    config.model.arrangement = "torchvision"  # of resnet50, resnet101, resnet152: where stride and biases are
    config.model.pooling = "average"  # before the head of a ResNet
    config.model.head = "original"  # of vgg16: 4096, 4096, or the paper's 1024, 1024 units before the logits
    config.model.stem = "replicate"  # one-channel images under three-channel weights: repeat them, or fold the kernels
    config.model.upsampling = "transposed"  # of unet
    config.model.attention = False  # of unet_resnet18, unet_resnet34, unet_resnet50

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.pct_start = 0.3
    config.optimizer.step_epochs = ()
    config.optimizer.step_factor = 0.1
    config.optimizer.plateau_factor = 0.1
    config.optimizer.plateau_patience = 10
    config.optimizer.plateau_min_delta = 1e-4
    config.optimizer.plateau_min_learning_rate = 0.0

    config.loss = ConfigDict()
    config.loss.name = "softmax_cross_entropy"
    config.loss.class_weights = FieldReference("none", field_type=object)  # a name, or a tuple of numbers
    config.loss.label_smoothing = 0.0

    config.augment = ConfigDict()
    config.augment.rotate = 0.0  # degrees either way
    config.augment.shift = 0.0  # fraction of the side, either way
    config.augment.scale = 0.0  # size between 1 - scale and 1 + scale
    config.augment.flip = False  # left and right: the heart has a side
    config.augment.brightness = 0.0  # factor between 1 - brightness and 1 + brightness
    config.augment.contrast = 0.0  # factor on the distance from the image's mean

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 2
    config.checkpoint.best = "loss"  # the validation figure that names the best checkpoint
    return config.lock()


def load(spec: str, overrides: Sequence[str]) -> ConfigDict:
    """The validated config of `path.py[:argument]` with `--config.key=value` overrides.

    Raises UserError, naming the key, what is allowed and the nearest existing name.
    """
    path, _, argument = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config: there is no file {path!r}: give a config such as configs/quickstart.py")
    module_spec = importlib.util.spec_from_file_location("covidjax_run_config", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"--config: {path} could not be evaluated: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config in {path} returns {type(config).__name__}: it has to return the ConfigDict of "
            "covidjax.config.default_config(), changed"
        )
    for override in overrides:
        _apply(config, override)
    validate(config)
    return config


def validate(config: ConfigDict) -> None:
    """Checks every key and value against the defaults. Raises UserError at the first that is wrong."""
    known = dict(flatten(default_config()))
    given = dict(flatten(config))
    for key in given:
        if key not in known:
            raise UserError(_unknown_key(key, known))
    for key, default in known.items():
        if key not in given:
            raise UserError(f"config.{key} is missing: start the config from covidjax.config.default_config()")
        _check_value(f"config.{key}", key, given[key], default)
    if config.dataset.channels not in (1, 3):
        raise UserError(f"config.dataset.channels is {config.dataset.channels}: allowed are 1 (gray) and 3 (RGB)")
    if config.dataset.name == "folder" and not config.dataset.root:
        raise UserError("config.dataset.root is empty: give the folder that holds train/ val/ test/")
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"config.batch_size {config.batch_size} is not a multiple of config.accumulation_steps "
            f"{config.accumulation_steps}: choose a batch size that is"
        )
    for number, phase in enumerate(config.phases):
        _check_phase(f"config.phases[{number}]", phase, known)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a dotted key and its value."""
    for key in sorted(config.keys(), key=str):
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def from_json(values: dict[str, Any]) -> ConfigDict:
    """The config that `to_json` wrote. Raises UserError for one with other keys, of another version or edited."""
    config = default_config()
    try:
        with config.ignore_type():
            config.update(_tuples(values))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"config.json is not a config of this version: {' '.join(str(error).split())}") from error
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def _check_phase(name: str, phase: Any, known: dict[str, Any]) -> None:
    if not isinstance(phase, dict | ConfigDict):
        raise UserError(f"{name} is {phase!r}: allowed is a dict with keys among {', '.join(PHASE_KEYS)}")
    if dotted := [key for key in phase if "." in str(key)]:
        raise UserError(f"{name} has the key {dotted[0]!r}: write {{'optimizer': {{'learning_rate': 1e-4}}}} instead")
    for key, value in flatten(phase):
        if key.split(".")[0] not in PHASE_KEYS or key not in known:
            allowed = [k for k in known if k.split(".")[0] in PHASE_KEYS]
            raise UserError(_unknown_key(key, allowed, name))
        _check_value(f"{name}.{key}", key, value, known[key])


def _apply(config: ConfigDict, override: str) -> None:
    name, equals, text = override.removeprefix("--config.").partition("=")
    known = dict(flatten(default_config()))
    if name not in known:
        raise UserError(_unknown_key(name, known))
    if not equals:
        raise UserError(f"--config.{name} has no value: write --config.{name}=VALUE (default {known[name]!r})")
    value: Any = text
    if not isinstance(known[name], str) or (name in TEXT_OR_TUPLE and text.startswith(("(", "["))):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            value = text
    owner, _, leaf = name.rpartition(".")
    target = config[owner] if owner else config
    _check_value(f"config.{name}", name, value, known[name])
    with target.ignore_type():
        target[leaf] = float(value) if isinstance(known[name], float) else _tuples(value)


def _check_value(name: str, key: str, value: Any, default: Any) -> None:
    if isinstance(default, bool):
        right, allowed = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        right, allowed = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(default, float):
        right, allowed = _is_number(value), "a number"
    elif key in TEXT_OR_TUPLE:
        right, allowed = isinstance(value, str | tuple | list), "a name or a tuple"
    elif isinstance(default, tuple):
        right, allowed = isinstance(value, tuple | list), "a tuple such as (1, 2)"
    else:
        right, allowed = isinstance(value, str), "text"
    if key in CHOICES and not (right and value in CHOICES[key]):
        near = difflib.get_close_matches(str(value), CHOICES[key], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} is {value!r}: allowed are {', '.join(CHOICES[key])}{hint}")
    if not right:
        raise UserError(f"{name} is {value!r}: allowed is {allowed}, such as its default {default!r}")
    if key in ELEMENTS and not isinstance(value, str):
        is_right, allowed = ELEMENTS[key]
        if not all(is_right(part) for part in value):
            raise UserError(f"{name} is {value!r}: allowed are {allowed}")
    if key in RANGES:
        low, high, closed = RANGES[key]
        if not (low <= value <= high) or (value == low and not closed):
            raise UserError(f"{name} is {value!r}: allowed is {'from' if closed else 'above'} {low:g} to {high:g}")


def _unknown_key(key: str, known: Any, name: str = "config") -> str:
    near = difflib.get_close_matches(key, known, 1, cutoff=0.3)
    same_leaf = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    nearest = (difflib.get_close_matches(key, same_leaf, 1, cutoff=0) or near or list(known))[0]
    owner = nearest.rpartition(".")[0]
    siblings = [other for other in known if other.rpartition(".")[0] == owner]
    group = f"{name}.{owner}" if owner else name
    return f"{name}.{key} does not exist: did you mean {name}.{nearest}? {group} has {', '.join(sorted(siblings))}"
