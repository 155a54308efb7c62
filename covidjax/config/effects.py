"""Keys of a config that were set and that nothing reads, because of what else the config says."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from covidjax import models, optim, tasks
from covidjax.config.checks import flatten
from covidjax.config.schema import PHASE_ONLY, keys
from covidjax.data import sources
from covidjax.errors import some_of

Values = Mapping[str, Any]  # by dotted key
Reason = Callable[[Values], str]  # why a key has no effect among these values; '' where it has one
ADAMS = ("adam", "adamw", "adamax")


def without_effect(config: ConfigDict) -> list[str]:
    """The keys that differ from their defaults and have no effect, each with its reason in brackets.

    What depends on the network's parameters is not looked at, nor is an ensemble.
    """
    if config.model.name == models.ENSEMBLE:
        return []
    values, known = dict(flatten(config)), keys()
    phases = [dict(flatten(phase)) for phase in config.phases]
    merged = [values | phase for phase in phases] or [values]
    found = []
    for key, value in values.items():
        if _same(value, known[key].default):
            continue
        if phases and all(key in phase or (key == "epochs" and "steps" in phase) for phase in phases):
            found.append(f"{key} (every phase sets its own)")
        elif all(reasons := [_reason(key, each) for each in merged]):
            found.append(f"{key} ({reasons[0]})")
    for number, (phase, each) in enumerate(zip(phases, merged, strict=False)):
        for key, value in phase.items():
            differs = key in PHASE_ONLY or not _same(value, known[key].default)
            if differs and (reason := _reason(key, each)):
                found.append(f"phases[{number}].{key} ({reason})")
    return found


def _same(value: Any, default: Any) -> bool:
    return tuple(value) == default if isinstance(value, list) else bool(value == default)


def _reason(key: str, values: Values) -> str:
    reason = REASONS.get(key)
    return reason(values) if reason else ""


def _of_network(option: str) -> Reason:
    def reason(values: Values) -> str:
        name = values["model.name"]
        return "" if option in models.options(name) else f"{name} has none"

    return reason


def _only(key: str, *chosen: str) -> Reason:
    """Of a key that is read where another key has one of these values."""
    return lambda values: "" if values[key] in chosen else f"{key} is {values[key]!r}"


def _sgd(values: Values) -> str:
    """Registered optimizers may take any key of the section."""
    name = values["optimizer.name"]
    return "" if name == "sgd" or name in optim.OPTIMIZERS.registered else f"optimizer.name is {name!r}"


def _nesterov(values: Values) -> str:
    return _sgd(values) or ("" if values["optimizer.momentum"] else "optimizer.momentum is 0")


def _beta_1(values: Values) -> str:
    return _only("optimizer.name", *ADAMS)(values) or (
        "optimizer.schedule 'fastai_one_cycle' moves it" if values["optimizer.schedule"] == "fastai_one_cycle" else ""
    )


def _any_of(*names: str) -> Reason:
    """Of a probability that is read where one of these changes is on."""

    def reason(values: Values) -> str:
        return "" if any(values[f"augment.{name}"] for name in names) else f"{some_of(names)} are 0"

    return reason


def _stem(values: Values) -> str:
    if values["dataset.channels"] != 1:
        return "the images are not gray"
    return "" if values["pretrained"] else "pretrained is ''"


def _upsampling(values: Values) -> str:
    other = "model.decoder is 'fastai'" if values["model.decoder"] == "fastai" else ""
    return _of_network("upsampling")(values) or ("" if values["model.name"] == "unet" else other)


def _masks(values: Values) -> str:
    name = values["model.name"]
    return "" if models.labels(name) == "pixels" else f"{name} labels whole images"


def _findings(values: Values) -> str:
    task = tasks.of(values["model.name"], values["loss.name"])
    return "" if "findings" in task.offers else f"{values['loss.name']} is of {task.of}"


def _files(values: Values) -> str:
    return "the phantom has no files" if values["dataset.name"] in sources.DRAWN else ""


def _never(values: Values) -> str:
    return f"model.name is {values['model.name']!r}"


REASONS: dict[str, Reason] = {
    **{f"model.{option}": _of_network(option) for option in models.SOME_HAVE},
    **{key: _never for key in keys() if key.startswith("ensemble.")},
    "nonfinite": lambda values: "of float16 loss scaling leaves them out" if values["precision"] == "float16" else "",
    "model.upsampling": _upsampling,
    "model.stem": _stem,
    "optimizer.momentum": _sgd,
    "optimizer.nesterov": _nesterov,
    "optimizer.warmup_epochs": _only("optimizer.schedule", "cosine"),
    "optimizer.beta_1": _beta_1,
    "optimizer.beta_2": _only("optimizer.name", *ADAMS),
    "optimizer.pct_start": _only("optimizer.schedule", "one_cycle", "fastai_one_cycle"),
    **{f"optimizer.step_{name}": _only("optimizer.schedule", "step") for name in ("epochs", "factor")},
    **{
        f"optimizer.plateau_{name}": _only("optimizer.schedule", "plateau")
        for name in ("factor", "patience", "min_delta", "min_learning_rate")
    },
    "augment.affine_probability": _any_of("rotate", "shift", "scale", "zoom"),
    "augment.lighting_probability": _any_of("brightness", "contrast", "sharpen"),
    "loss.focal_gamma": _only("loss.name", "focal"),
    "loss.tversky_beta": _only("loss.name", "tversky"),
    "dataset.seed": _only("dataset.name", *sources.DRAWN),
    "dataset.num_images": _only("dataset.name", *sources.DRAWN),
    "dataset.uncertain": _findings,
    "dataset.split_seed": lambda values: "" if values["dataset.subset"] else _only("dataset.name", "folder")(values),
    "dataset.frame": _only("dataset.name", "folder"),
    "dataset.mask_classes": _masks,
    **{f"dataset.{name}": _files for name in ("root", "fold", "subset", "crop", "window", "skip_bad")},
}
