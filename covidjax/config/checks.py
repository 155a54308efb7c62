"""Checks of a config against the schema. Each raises UserError: the key, its value, and what is allowed."""

import difflib
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from covidjax import losses, models, optim, tasks
from covidjax.config.kinds import is_number, is_several
from covidjax.config.plugins import import_plugins
from covidjax.config.schema import KEYS, PHASE_KEYS, PHASE_ONLY, keys
from covidjax.config.writers import WRITERS
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.freeze import strategies
from covidjax.freeze.strategies import gradual_epochs
from covidjax.registry import near

# What other tools call keys.
SHORT_NAMES = {
    "lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "bs": "batch_size",
    "num_epochs": "epochs",
    "img_size": "dataset.image_size",
    "size": "dataset.image_size",
    "pretrained_weights": "pretrained",
    "weights": "pretrained",
    "amp": "precision",
    "dtype": "precision",
}


def validate(config: ConfigDict) -> None:
    """Checks every key and value, and what goes together. Raises UserError at the first that is wrong."""
    given = dict(flatten(config))
    if "plugins" in given:
        check_value("config.plugins", "plugins", given["plugins"])
        import_plugins(given["plugins"])
    known = keys()
    for key in given:
        if key not in known:
            raise UserError(unknown_key(key, known))
    for key in known:
        if key not in given and key not in KEYS:
            continue  # of an augmentation that another config brought
        if key not in given:
            raise UserError(f"config.{key} is missing: start the config from covidjax.config.default_config()")
        check_value(f"config.{key}", key, given[key])
    if config.dataset.channels not in (1, 3):
        raise UserError(f"config.dataset.channels is {config.dataset.channels}: allowed are 1 (gray) and 3 (RGB)")
    if config.dataset.name not in sources.DRAWN and not config.dataset.root:
        needed = "holds train/ val/ test/" if config.dataset.name == "folder" else "launch/prepare.py wrote"
        raise UserError(f"config.dataset.root is empty: give the folder that {needed}")
    _check_masks(config)
    _check_task(config)
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"config.batch_size {config.batch_size} is not a multiple of config.accumulation_steps "
            f"{config.accumulation_steps}: choose a batch size that is"
        )
    check_phases(config.phases)
    _check_gradual(config)
    _check_splits(config)
    _check_own(config)
    _check_ensemble(config)


def check_value(name: str, key: str, value: Any) -> None:
    """Checks the value of a key, which the message calls `name`."""
    known = keys().get(key) or PHASE_ONLY[key]
    is_kind, words = known.kind_of_values
    right, several = is_kind(value), is_several(value)
    if known.allowed and not several and not (right and value in known.allowed):
        hint = near(str(value), known.allowed)
        raise UserError(f"{name} is {value!r}: allowed are {', '.join(known.allowed)}{hint}")
    if not right:
        example = f", such as its default {known.default!r}" if known.default != () else ""
        raise UserError(f"{name} is {value!r}: allowed is {words}{example}{_comma(key, value)}")
    if known.elements and several and not all(map(known.elements.accepts, value)):
        raise UserError(f"{name} is {value!r}: allowed are {known.elements.words}{_comma(key, value)}")
    if known.range_words and not all(map(known.in_range, value if several else (value,))):
        raise UserError(f"{name} is {value!r}: allowed is {known.range_words}")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a dotted key and its value."""
    for key in sorted(config.keys(), key=str):
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _comma(key: str, value: Any) -> str:
    """A hint where a value is what a tuple of one would hold, of which the comma was forgotten."""
    known = keys().get(key) or PHASE_ONLY[key]
    one = isinstance(value, dict) if key == "phases" else known.elements and known.elements.accepts(value)
    return f"; add a comma, which makes it a tuple of one: ({value!r},)" if one else ""


def plain(value: Any) -> Any:
    """A value with dicts in place of every ConfigDict."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return value.to_dict() if isinstance(value, ConfigDict) else value


def unknown_key(key: str, known: Collection[str], name: str = "config") -> str:
    """The message for a key that does not exist: the nearest that does, and those of its section.

    The nearest: another name of the same level, or the whole path of the key of that name in another one.
    """
    if name != "config" and key in keys():
        return f"{name}.{key} does not exist: a phase may set {_levels(known)}; config.{key} holds for all phases"
    nearest = _nearest(key, known)
    message = f"{name}.{key} does not exist: "
    if nearest:
        message += f"did you mean {' or '.join(f'{name}.{one}' for one in nearest)}? "
    sections = _sections(known)
    owner = key.rpartition(".")[0] if not nearest else nearest[0]
    owner = owner if owner in sections else owner.rpartition(".")[0]
    if len(nearest) > 1:
        return message.rstrip()
    if not owner:
        return f"{message}{name} has {_levels(known)}"
    siblings = sorted(other.removeprefix(f"{owner}.") for other in known if other.startswith(f"{owner}."))
    return f"{message}{name}.{owner} has {', '.join(siblings)}"


def _nearest(key: str, known: Collection[str]) -> list[str]:
    """The keys that an unknown one may stand for, none where nothing is near."""
    section, _, leaf = key.rpartition(".")
    sections = _sections(known)
    if key in sections:
        return [other for other in known if other.startswith(f"{key}.")][:1]
    if section and section not in sections:
        near = difflib.get_close_matches(section, sorted(sections), 1)
        return [f"{near[0]}.{leaf}"] if near and f"{near[0]}.{leaf}" in known else _nearest(leaf, known)
    if (meant := SHORT_NAMES.get(leaf)) in known:
        return [str(meant)]
    leaves = {other: other.rpartition(".")[2] for other in known}
    if same := [other for other, own in leaves.items() if own == leaf]:
        return same
    level = [own for other, own in leaves.items() if other.rpartition(".")[0] == section]
    if near := difflib.get_close_matches(leaf, [*level, *(() if section else sections)], 1):
        whole = f"{section}.{near[0]}".removeprefix(".")
        return [whole]
    near = difflib.get_close_matches(leaf, sorted(set(leaves.values())), 1, cutoff=0.8)
    return [other for other, own in leaves.items() if own in near]


def _levels(known: Collection[str]) -> str:
    """The keys that stand in no section, and the sections."""
    alone = sorted(other for other in known if "." not in other)
    return f"{', '.join(alone)}, and the keys of {', '.join(sorted(_sections(known)))}"


def _sections(known: Collection[str]) -> set[str]:
    return {other.rpartition(".")[0] for other in known} - {""}


def check_phases(phases: Any) -> None:
    """Checks the keys and values of each phase. Raises UserError."""
    for number, phase in enumerate(phases):
        _check_phase(f"config.phases[{number}]", phase)


def _check_masks(config: ConfigDict) -> None:
    """Checks the classes of masks."""
    names = tuple(config.dataset.mask_classes)
    if not 2 <= len(set(names)) == len(names) <= 256 or not all(names):
        raise UserError(
            f"config.dataset.mask_classes is {names!r}: allowed are 2 to 256 different names, the background first"
        )


def _check_task(config: ConfigDict) -> None:
    """Checks that the loss and the figure of checkpoints are of the network's task, and what the task itself asks."""
    name, task = config.model.name, tasks.of(config.model.name, config.loss.name)
    for key, value, kind, allowed, others in (
        (
            "checkpoint.best",
            config.checkpoint.best,
            "figure",
            task.best,
            [other.best for other in tasks.TASKS.values()],
        ),
        ("loss.name", config.loss.name, "loss", task.losses, [other.losses for other in tasks.TASKS.values()]),
    ):
        if value not in allowed:
            of = next(other.of for other, has in zip(tasks.TASKS.values(), others, strict=True) if value in has)
            raise UserError(
                f"config.{key} is {value!r}, a {kind} of {of}, and config.model.name is {name!r}, which {task.words}: "
                f"allowed are {', '.join(allowed)}"
            )
    task.check(name, config.dataset, config.loss)
    for key in ("mixup", "cutmix"):
        if config.augment[key] and "mix" not in task.offers:
            raise UserError(
                f"config.augment.{key} is {config.augment[key]} and mixes labels of images, but config.model.name is "
                f"{name!r}, which {task.words}: set it to 0"
            )


def _check_phase(name: str, phase: Any) -> None:
    if not isinstance(phase, dict | ConfigDict):
        raise UserError(f"{name} is {phase!r}: allowed is a dict with keys among {', '.join(PHASE_KEYS)}")
    if dotted := [key for key in phase if "." in str(key)]:
        raise UserError(f"{name} has the key {dotted[0]!r}: write {{'optimizer': {{'learning_rate': 1e-4}}}} instead")
    allowed = [key for key in (*KEYS, *PHASE_ONLY) if key.split(".")[0] in PHASE_KEYS]
    for key, value in flatten(phase):
        if key not in allowed:
            raise UserError(unknown_key(key, allowed, name))
        check_value(f"{name}.{key}", key, value)
    if "epochs" in phase and "steps" in phase:
        raise UserError(f"{name} has both epochs and steps: give one of them")
    if gradual_epochs(phase.get("freeze")) is not None:
        raise UserError(
            f"{name}.freeze is {phase['freeze']!r}, which is a run of phases itself: write it in config.freeze and "
            "leave config.phases empty, or write the phases with last:1, last:2 and so on"
        )


def trains_on_val(config: ConfigDict) -> bool:
    """Whether the last phase trains on the validation images too."""
    return bool(config.phases) and config.phases[-1].get("split", "train") != "train"


def lora_rank(config: ConfigDict) -> int:
    """The rank of the adapters that a phase trains; 0 without. Raises UserError for two ranks, and one that is none."""
    return strategies.lora_rank(config.freeze, *(phase.get("freeze") for phase in config.phases))


def _check_splits(config: ConfigDict) -> None:
    """Checks that nothing is chosen on validation images that were trained on."""
    splits = [phase.get("split", "train") for phase in config.phases]
    if "train+val" not in splits:
        return
    first = splits.index("train+val")
    said = f"config.phases[{first}].split is 'train+val', after which validation images are no unseen ones"
    if "train" in splits[first:]:
        raise UserError(f"{said}: all phases behind it train on them too, or it comes last")
    if config.checkpoint.evaluate != "last":
        raise UserError(f"{said} and cannot name the best checkpoint: set config.checkpoint.evaluate to 'last'")
    if config.early_stopping.patience:
        raise UserError(f"{said} and cannot stop the run early: set config.early_stopping.patience to 0")


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


def _check_own(config: ConfigDict) -> None:
    """Checks that registered parts take their options, and that the package's own are given none."""
    task = tasks.of(config.model.name, config.loss.name)
    for section, registered in (
        (config.model, models.MODELS.registered),
        (config.optimizer, optim.OPTIMIZERS.registered),
        (config.loss, [name for name, loss in task.losses.items() if isinstance(loss, losses.OwnLoss)]),
    ):
        if section.options and section.name not in registered:
            raise UserError(
                f"options {section.options!r} are of parts that take some: {section.name} has none, leave them out"
            )
    for name in config.writers:
        WRITERS.find(name, "config.writers")
    if config.model.name in models.MODELS.registered or lora_rank(config):
        models.build(config.model, 2, config.precision, lora_rank=lora_rank(config))
    if config.optimizer.name in optim.OPTIMIZERS.registered:
        optim.optimizer(config.optimizer)
    if isinstance(task.losses.get(config.loss.name), losses.OwnLoss):
        weighted = config.loss.class_weights != "none"
        losses.loss_function(config.loss, (1.0,) if weighted else None, task.losses)


def _check_ensemble(config: ConfigDict) -> None:
    if config.model.name != models.ENSEMBLE:
        return
    rule, split, optimizer = config.ensemble.weights, config.ensemble.weights_from, config.optimizer
    if rule == "equal" and split != "val":
        raise UserError(f"config.ensemble.weights_from is {split!r}, but no split decides equal weights: leave it out")
    if rule == "gradient" and not is_number(optimizer.learning_rate):
        raise UserError(
            f"config.optimizer.learning_rate is {optimizer.learning_rate!r}, and a mixture has no stages to spread it "
            "over: give a number"
        )
    if rule == "gradient" and optimizer.schedule == "plateau":
        raise UserError("config.optimizer.schedule is 'plateau', which an ensemble does not have: choose another")
