"""What a key of the config is, and what its values may be."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from covidjax import mesh
from covidjax.data import levels
from covidjax.data.findings import POLICIES
from covidjax.freeze.plan import BATCH_NORM_MODES

NO_LIMIT = 1e9  # the end of ranges that have none in practice


class Kind(NamedTuple):
    """A check of a value, and words for what passes it."""

    accepts: Callable[[Any], bool]
    words: str


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the config.

    text: what it is for, in one line. choices: of a text, or a function that gives them, as plugins add some.
    low, high: the range of a number, with its ends; above, below: without them. kind: of the values, where it is
    not that of the default. elements: what a tuple holds.
    """

    default: Any
    text: str
    choices: tuple[str, ...] | Callable[[], Iterable[str]] = ()
    low: float = -math.inf
    high: float = NO_LIMIT
    above: float = -math.inf
    below: float = math.inf
    kind: Kind | None = None
    elements: Kind | None = None

    @property
    def allowed(self) -> tuple[str, ...]:
        """The texts to choose from; empty where any is allowed."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    @property
    def kind_of_values(self) -> Kind:
        """The check of a value as a whole."""
        return self.kind or KINDS[type(self.default)]

    @property
    def range_words(self) -> str:
        """The range in words; nothing where every number is allowed."""
        low = f"from {self.low:g}" if math.isfinite(self.low) else f"above {self.above:g}"
        high = f" to below {self.below:g}" if math.isfinite(self.below) else f" to {self.high:g}"
        return low + high if math.isfinite(max(self.low, self.above)) else ""

    def in_range(self, number: float) -> bool:
        """Whether a number is within the range."""
        return self.low <= number <= self.high and self.above < number < self.below


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a finite float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_text(value: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def is_several(value: Any) -> bool:
    """Whether a value is a tuple or a list."""
    return isinstance(value, tuple | list)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_rate(value: Any) -> bool:
    pair = is_several(value) and len(value) == 2 and all(map(is_number, value)) and value[0] <= value[1]
    return is_number(value) or pair


def _pairs(second: Callable[[Any], bool], words: str) -> Kind:
    """Pairs of a text and another value."""
    return Kind(lambda one: is_several(one) and len(one) == 2 and is_text(one[0]) and second(one[1]), words)


def decays(high: float, example: float) -> Kind:
    """Pairs of a pattern and a decay. example: one, for the words."""
    words = f"pairs of a pattern and a decay from 0 to {high:g}, such as (('head', {example}),)"
    return _pairs(lambda decay: is_number(decay) and 0 <= decay <= high, words)


# By the type of the default.
KINDS: dict[type, Kind] = {
    bool: Kind(lambda value: isinstance(value, bool), "true or false"),
    int: Kind(_is_whole, "a whole number"),
    float: Kind(is_number, "a number"),
    tuple: Kind(is_several, "a tuple"),
    str: Kind(is_text, "text"),
}
NAME_OR_TUPLE = Kind(lambda value: is_text(value) or is_several(value), "a name or a tuple")
RATE = Kind(_is_rate, "a number or a pair (low, high)")
PATTERNS = Kind(is_text, "patterns, such as ('stem', 'layer1/')")
STAGES = Kind(is_text, "names of stages, such as ('layer1', 'layer2')")
STAGE_MODES = _pairs(
    lambda mode: mode in BATCH_NORM_MODES,
    f"pairs of a stage and one of {', '.join(BATCH_NORM_MODES)}, such as (('layer4', 'batch'),)",
)
RATE_FACTORS = _pairs(
    lambda factor: is_number(factor) and factor > 0,
    "pairs of a pattern and a factor above 0, such as (('layer1', 0.01),)",
)
TIMES = _pairs(_is_whole, "pairs of a class and how often its images count, such as (('COVID-19', 17),)")
CLASS_NAMES = Kind(is_text, "names of classes, such as ('background', 'lung')")
CLASS_WEIGHTS = Kind(
    lambda part: is_number(part) or _pairs(is_number, "").accepts(part),
    "numbers, one per class, or pairs of a class and its weight, such as (('covid19', 12.0),)",
)
FINDING_POLICIES = _pairs(
    lambda policy: policy in POLICIES,
    f"pairs of a finding and one of {', '.join(POLICIES)}, such as (('Edema', 'ones'),)",
)
WINDOW = Kind(levels.is_window, f"'', {levels.WINDOW_WORDS}")
OPTIONS = _pairs(lambda value: True, "pairs of an option and its value, such as (('depth', 3),)")
PLUGINS = Kind(is_text, "modules or .py files, such as ('my_parts.py',)")
WRITER_NAMES = Kind(is_text, "names of registered writers, such as ('mlflow',)")
WORKDIRS = Kind(is_text, "workdirs, such as ('runs/a', 'runs/b')")
MESH_AXES = Kind(
    lambda one: is_several(one) and len(one) == 2 and one[0] in mesh.AXES and type(one[1]) is int and one[1] >= -1,
    "pairs of an axis, 'data' or 'fsdp', and its number of devices, -1: what is left, such as (('data', -1), "
    "('fsdp', 4))",
)
EPOCHS = Kind(_is_whole, "whole numbers, such as (30, 60)")
