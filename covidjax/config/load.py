"""The config of a run: the defaults, changed by a file and the command line, and its form as JSON."""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from covidjax import files
from covidjax.config.checks import check_value, flatten, unknown_key, validate
from covidjax.config.file import check_values, evaluate, meaning
from covidjax.config.kinds import Key, is_text
from covidjax.config.plugins import import_plugins
from covidjax.config.schema import KEYS, PRESETS, keys
from covidjax.data.augment import AUGMENTATIONS
from covidjax.errors import UserError
from covidjax.process import path_of
from covidjax.registry import near


class Section(ConfigDict):
    """Keys of a config. What a file or a program sets wrong is told as on the command line."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Sets a key. Raises UserError for one that does not exist, and for a value of the wrong kind."""
        try:
            super().__setitem__(key, value)
        except (KeyError, TypeError) as error:
            raise UserError(meaning(error)) from error


class Config(Section):
    """A config of which a section may be set as a whole: by a dict of some of its keys, or the name of a preset."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Sets a key. Raises UserError for a name that is no preset of the section, and as a section does."""
        section = self.get(key)
        if key in PRESETS and isinstance(value, str):
            value = _preset(key, value, section)
        if isinstance(section, ConfigDict) and isinstance(value, dict | ConfigDict):
            section.update(value)
        else:
            super().__setitem__(key, value)


def _preset(section: str, name: str, former: ConfigDict) -> dict[str, Any]:
    """The values of a whole section; what else it has is off. Raises UserError for a name that is no preset."""
    if name not in (presets := PRESETS[section]):
        allowed = f"{', '.join(presets)}{near(name, presets)}; single keys are {', '.join(sorted(former))}"
        raise UserError(f"config.{section} is {name!r}: allowed are {allowed}")
    return {part: type(value)(0) for part, value in former.items()} | presets[name]


def default_config(plugins: Sequence[str] = ()) -> ConfigDict:
    """Every key that exists, with its default; the type of the default is the type of the key.

    plugins: of `config.plugins`, whose augmentations have keys too.
    """
    import_plugins(plugins)
    config = Config()
    for name, key in keys().items():
        _add(config, name, key)
    config.plugins = tuple(plugins)
    return config.lock()


def _add(config: ConfigDict, name: str, key: Key) -> None:
    section, _, leaf = name.rpartition(".")
    if section and section not in config:
        config[section] = Section()
    owner = config[section] if section else config
    owner[leaf] = FieldReference(key.default, field_type=object) if key.kind else key.default


def _with_plugins(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Imports the plugins of a config, or those that an override names, and adds the keys that they bring."""
    for override in overrides:
        if override.startswith("--config.plugins="):
            _apply(config, override)
    check_value("config.plugins", "plugins", config.get("plugins", ()))
    import_plugins(config.get("plugins", ()))
    with config.unlocked():
        for name, key in keys().items():
            if name not in KEYS and name.rpartition(".")[2] not in config.augment:
                _add(config, name, key)


def load(spec: str, overrides: Sequence[str]) -> ConfigDict:
    """The validated config of `path.py[:argument]` with `--config.key=value` overrides.

    Raises UserError, naming the key, what is allowed and the nearest existing name; of the file also the line.
    """
    parts = re.fullmatch(r"(.+?\.py)(?::(.*))?", spec, re.DOTALL)
    path, argument = parts.groups() if parts else (spec, None)
    file = path_of(path)
    if not file.is_file():
        raise UserError(f"--config: there is no file {path!r}: give a config such as configs/quickstart.py")
    config, sources = evaluate(path, file, argument)
    _with_plugins(config, overrides)
    check_values(config, path, sources)
    for override in overrides:
        _apply(config, override)
    validate(config)
    return config


def from_json(values: dict[str, Any]) -> ConfigDict:
    """The config that `to_json` wrote; keys that it lacks, as they are younger, have their defaults.

    Raises UserError for one with other keys or values: of another version, or edited.
    """
    plugins = values.get("plugins", ()) if isinstance(values, dict) else ()
    config = default_config(tuple(plugins) if isinstance(plugins, list) and all(map(is_text, plugins)) else ())
    try:
        with config.ignore_type():
            config.update(_tuples(values))
        for key, value in flatten(config):
            check_value(f"config.{key}", key, value)
    except (UserError, KeyError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.json is not a config of this version of covidjax: {reason}: use the version that wrote it "
            "(git_revision in run.json tells it), name the plugins that it needs, or use another workdir"
        ) from error
    return config


def of_workdir(workdir: Path) -> ConfigDict:
    """The config of a run. Raises UserError where the folder holds none, or as `from_json`."""
    return from_json(files.read_json(workdir / "config.json"))


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists), without registered augmentations that are off."""
    values = json.loads(config.to_json_best_effort())
    for name, part in AUGMENTATIONS.items():
        if values["augment"].get(name) == part.default:
            del values["augment"][name]
    return values


def _apply(config: ConfigDict, override: str) -> None:
    name, equals, text = override.removeprefix("--config.").partition("=")
    if name in PRESETS and equals:
        config[name] = text
        return
    known = keys()
    if name not in known:
        raise UserError(unknown_key(name, known))
    default, kind = known[name].default, known[name].kind
    if not equals:
        raise UserError(f"--config.{name} has no value: write --config.{name}=VALUE (default {default!r})")
    value: Any = text
    if not isinstance(default, str) or (kind and text.startswith(("(", "["))):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            value = text
    check_value(f"config.{name}", name, value)
    section, _, leaf = name.rpartition(".")
    target = config[section] if section else config
    with target.ignore_type():
        target[leaf] = _floats(value) if isinstance(default, float) else _tuples(value)


def _floats(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
