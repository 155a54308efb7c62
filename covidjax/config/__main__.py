"""Prints docs/config.md: `python -m covidjax.config > docs/config.md`."""

from itertools import groupby

from covidjax.config.kinds import NO_LIMIT, Key
from covidjax.config.schema import KEYS, PHASE_KEYS, PHASE_ONLY, PRESETS

HEADER = f"""# Keys of the config

Made by `python -m covidjax.config > docs/config.md` from `covidjax/config/schema.py`.

A config is a Python file with `get_config(argument)`, which returns a changed `covidjax.config.default_config()`. Any
key can be changed on the command line: `--config.optimizer.learning_rate=3e-4`. Each of `config.phases` is a dict that
changes, for one phase of the run, {", ".join(f"`{name}`" for name in PHASE_KEYS)}."""


def page() -> str:
    """The page: a table of each section of the config."""
    parts = [HEADER]
    for section, names in groupby(KEYS, key=lambda name: name.rpartition(".")[0]):
        parts += [f"## `config{'.' * bool(section)}{section}`", _table({name: KEYS[name] for name in names})]
        parts += filter(None, [_presets(section)])
    return "\n\n".join([*parts, "## In a phase", _table(PHASE_ONLY)]) + "\n"


def _presets(section: str) -> str:
    """The names for values of the whole section, if it has any."""
    if section not in PRESETS:
        return ""
    listed = []
    for name, values in PRESETS[section].items():
        own = [f"{key} {value:g}" for key, value in values.items() if value != KEYS[f"{section}.{key}"].default]
        listed.append(f"`{name}` ({', '.join(own) or 'all 0'})")
    return (
        f"The section as a whole takes a name, in a config and on the command line (`--config.{section}=light`), and "
        f"the run records the keys that it stands for: {', '.join(listed)}. Single keys may follow."
    )


def _table(keys: dict[str, Key]) -> str:
    rows = [("key", "default", "allowed", "what it is"), ("---",) * 4]
    rows += [(f"`{name}`", f"`{key.default!r}`", _allowed(key), key.text) for name, key in keys.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _allowed(key: Key) -> str:
    choices = ", ".join(f"`{choice or repr('')}`" for choice in key.allowed)
    numbers = key.range_words and f"{key.kind_of_values.words} {key.range_words.removesuffix(f' to {NO_LIMIT:g}')}"
    elements = key.elements.words if key.elements else ""
    return "; ".join(filter(None, (choices, numbers, elements))) or key.kind_of_values.words


if __name__ == "__main__":
    print(page(), end="")
