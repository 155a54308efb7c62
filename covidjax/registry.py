"""Parts of a run by name: those of the package, and those that plugins register with a decorator."""

import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

from covidjax.errors import UserError

Part = TypeVar("Part")
Range = tuple[float, float]
MARK = "__covidjax_plugin__"  # in the globals of a plugin's module: its name in config.plugins


class Registry(Mapping[str, Part], Generic[Part]):
    """Parts of one kind by name. kind: what a part is, in words; built_in: those of the package."""

    def __init__(self, kind: str, built_in: Mapping[str, Part]) -> None:
        self.kind = kind
        self._parts = dict(built_in)
        self._origins: dict[str, tuple[str, str]] = {}

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def registered(self) -> tuple[str, ...]:
        """The names that are not the package's own, in the order in which they came."""
        return tuple(self._origins)

    def add(self, name: str, part: Part, source: Any, *, form: str = r"[\w.-]+") -> None:
        """Registers a part. source: the function or class that the decorator stands on; form: a pattern of names.

        The same definition, executed again, takes the place of the former one.
        Raises UserError for a name of another form, and for one that another definition has.
        """
        if not re.fullmatch(form, name):
            raise UserError(f"a {self.kind} is registered as {name!r}: allowed are names such as 'my_{self.kind}'")
        origin = _origin(source)
        former = self._origins.get(name, ("covidjax", name)) if name in self._parts else origin
        if former != origin:
            raise UserError(
                f"two definitions are registered as the {self.kind} {name!r}, {former[1]} of {former[0]} and "
                f"{origin[1]} of {origin[0]}: give one of them another name"
            )
        self._parts[name], self._origins[name] = part, origin

    def find(self, name: str, key: str) -> Part:
        """The part of a name. key: of the config, for the message. Raises UserError for a name that is not there."""
        if name not in self._parts:
            allowed = ", ".join(self) or "those that config.plugins registers, which is none"
            raise UserError(f"{key} is {name!r}: allowed are {allowed}{near(name, self)}")
        return self._parts[name]

    def state(self) -> tuple[dict[str, Part], dict[str, tuple[str, str]]]:
        """What it holds, for `reset`."""
        return dict(self._parts), dict(self._origins)

    def reset(self, state: tuple[dict[str, Part], dict[str, tuple[str, str]]]) -> None:
        """Makes it hold what it held when `state` was asked for."""
        self._parts, self._origins = dict(state[0]), dict(state[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Own:
    """A function of a plugin. ranges: the least and the greatest value of those of its options that are numbers."""

    function: Callable[..., Any]
    ranges: Mapping[str, Range]

    def __post_init__(self) -> None:
        for name in self.ranges:
            if name not in self.options and not self.takes_any:
                raise UserError(
                    f"{self.function.__name__} is registered with a range of {name!r}, which it does not take"
                )

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """What it takes by name; `name` and `parent` of a module of Flax are none of it."""
        parameters = inspect.signature(self.function).parameters
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {name: p for name, p in parameters.items() if p.kind in kinds and name not in ("name", "parent")}

    @property
    def takes_any(self) -> bool:
        """Whether it has **keywords."""
        parameters = inspect.signature(self.function).parameters.values()
        return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)

    def keywords(self, section: str, options: Collection[tuple[str, Any]], shared: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords to call it with: those of `shared` that it takes, and its own options.

        section: of the config, 'model' or another; options: `config.<section>.options`.
        Raises UserError for an option that it does not have, lacks, or that is out of its range.
        """
        own = {name: p for name, p in self.options.items() if name not in shared}
        has = f"it has {', '.join(own)}" if own else "it has none"
        for name, value in options:
            if name in shared:
                raise UserError(f"config.{section}.options has {name!r}, a key of its own: set config.{section}.{name}")
            if name not in own and not self.takes_any:
                what = f"config.{section}.options has {name!r}, which {self.function.__name__} does not take"
                raise UserError(f"{what}: {has}{near(name, own)}")
            low, high = self.ranges.get(name, (-float("inf"), float("inf")))
            if name in self.ranges and not all(_within(each, low, high) for each in _several(value)):
                raise UserError(
                    f"config.{section}.options has {name} {value!r}: allowed are numbers from {low:g} to {high:g}"
                )
        given = {name: value for name, value in shared.items() if name in self.options} | dict(options)
        for name, parameter in own.items():
            if parameter.default is inspect.Parameter.empty and name not in given:
                raise UserError(
                    f"{self.function.__name__} needs {name!r}: set config.{section}.options = (({name!r}, VALUE),)"
                )
        return given


def fault(error: BaseException) -> str:
    """What a plugin did wrong, in one line: the innermost line of one that an error passed through, and its text.

    Or the function of one that cannot be called as its kind of part is. Nothing where it is none of both.
    """
    found, trace = "", error.__traceback__
    while trace is not None:
        code, plugin = trace.tb_frame.f_code, trace.tb_frame.f_globals.get(MARK)
        if plugin is not None:
            found = f"config.plugins has {plugin!r}, which fails in line {trace.tb_lineno} of {code.co_filename}"
            found += "" if code.co_name == "<module>" else f", in {code.co_qualname}"
        trace = trace.tb_next
    text = " ".join(str(error).strip().partition("\n\n")[0].split())
    found = found or _called_otherwise(error)
    return found and f"{found}: {type(error).__name__}: {text}"


def _called_otherwise(error: BaseException) -> str:
    """The function of a plugin whose parameters are not those that it is called with; '' where it is another error."""
    called = re.match(r"([\w.]+)\(\) (takes|got|missing)", str(error)) if isinstance(error, TypeError) else None
    if called is None:
        return ""
    for module in list(sys.modules.values()):
        plugin = getattr(module, "__dict__", {}).get(MARK)
        function: Any = module
        for name in called[1].split("."):
            function = getattr(function, name, None)
        if plugin is not None and callable(function):
            line = inspect.unwrap(function).__code__.co_firstlineno
            return (
                f"config.plugins has {plugin!r}, whose {called[1]} in line {line} takes other arguments than those of "
                "its kind (docs/add-a-model.md)"
            )
    return ""


def near(name: str, known: Collection[str]) -> str:
    """A question that ends a message on an unknown name; nothing where no known one is near."""
    found = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _origin(source: Any) -> tuple[str, str]:
    """Where a function or a class is defined, and its name there."""
    module = getattr(source, "__module__", type(source).__module__)
    name = getattr(source, "__qualname__", repr(source))
    if name.endswith("<lambda>"):
        name += f" in line {source.__code__.co_firstlineno}"
    return getattr(sys.modules.get(module), "__file__", None) or module, name
