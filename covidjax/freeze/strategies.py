"""The values of `config.freeze`: the names of ways to freeze, and which parameters each lets train."""

import ast
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from covidjax.errors import UserError
from covidjax.registry import Registry, near

CACHED = "cached"  # in front of a strategy, in comparisons
Stages = tuple[str, ...]
Rule = Callable[[str], bool]
Made = TypeVar("Made", bound=Callable[[str, Stages], Stages])


def is_norm(path: str) -> bool:
    """Whether a parameter is one of a normalisation layer."""
    return any("norm" in part for part in path.split("/")[1:-1])


def is_bias(path: str) -> bool:
    """Whether a parameter is added to what its layer gives; those of normalisation are."""
    return path.endswith("/bias")


def is_adapter(path: str) -> bool:
    """Whether a parameter is one of the two matrices of an adapter, see `models.branches.Product`."""
    return path.endswith(("/lora_down", "/lora_up"))


class Strategy(NamedTuple):
    """stages: of the argument after the colon and all stages, those that train whole; leaves: what else trains."""

    description: str
    stages: Callable[[str, Stages], Stages]
    leaves: Rule = lambda path: False


def _head(argument: str, stages: Stages) -> Stages:
    return stages[-1:]


def _after(stage: str, stages: Stages) -> Stages:
    if stage not in stages:
        raise UserError(f"freeze 'until:{stage}': there is no stage {stage!r}: allowed are {', '.join(stages)}")
    return stages[stages.index(stage) + 1 :]


def _lora(rank: str, stages: Stages) -> Stages:
    if _whole(rank) < 1:
        raise UserError(f"freeze 'lora:{rank}': allowed is lora:<rank>, the rank being 1 and more, such as lora:8")
    return stages[-1:]


def lora_rank(*strategies: Any) -> int:
    """The rank of the adapters that values of `config.freeze` ask for; 0 where none does.

    Raises UserError for two ranks, and one that is none.
    """
    parts = [part for value in strategies if isinstance(value, str) for part in value.split("+")]
    ranks = {part.removeprefix("lora:") for part in parts if part.startswith("lora:")}
    if len(ranks) > 1:
        raise UserError(
            f"freeze has adapters of the ranks {', '.join(sorted(ranks))}: the phases of a run share one rank"
        )
    for rank in ranks:
        _lora(rank, ())
    return max(map(_whole, ranks), default=0)


def _last(count: str, stages: Stages) -> Stages:
    number = _whole(count)
    if not 1 <= number <= len(stages):
        raise UserError(
            f"freeze 'last:{count}': allowed is last:1 to last:{len(stages)}, counted from the end of the stages "
            f"{', '.join(stages)}"
        )
    return stages[-number:]


# Names joined with '+' train what any of them trains.
STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    {
        "none": Strategy("everything trains", lambda argument, stages: stages),
        "backbone": Strategy("all stages but the last are frozen", _head),
        "until:<stage>": Strategy("the stages up to and including <stage> are frozen", _after),
        "last:<n>": Strategy("the last n stages train", _last),
        "norm": Strategy("normalisation parameters and the last stage train", _head, is_norm),
        # Ben Zaken, Goldberg, Ravfogel 2021, BitFit: https://arxiv.org/abs/2106.10199
        "bitfit": Strategy("biases and the last stage train", _head, is_bias),
        # Hu et al. 2021, LoRA: https://arxiv.org/abs/2106.09685
        "lora:<rank>": Strategy(
            "adapters of that rank beside dense kernels, and the last stage train", _lora, is_adapter
        ),
    },
)
OTHER_NAMES = {"all_but_norm": "norm", "all_but_bias": "bitfit"}
# Not a plan but a run of them: `gradual_epochs`, and the phases that train/phases.py makes of it.
GRADUAL = "gradual:<k>"


def allowed() -> tuple[str, ...]:
    """The names of strategies, and that they may be joined."""
    return (*STRATEGIES, *OTHER_NAMES, "any of these joined with '+'")


def register_strategy(name: str, description: str, *, leaves: Rule = lambda path: False) -> Callable[[Made], Made]:
    """Makes a function (argument, stages) -> the stages that train whole a strategy of that name: a decorator.

    name: such as 'alternate', or 'every:<n>', whose argument is what stands after the colon. leaves: whether a
    parameter trains beside, by its path, such as 'layer3/block2/conv1/kernel'.
    Raises UserError for a name that another strategy has.
    """

    def register(function: Made) -> Made:
        head, colon, _ = name.partition(":")
        taken = [other for other in (*STRATEGIES, *OTHER_NAMES, GRADUAL, f"{CACHED}:") if other != name]
        if (head, colon) in [other.partition(":")[:2] for other in taken] or head == CACHED:
            raise UserError(f"a strategy is registered as {name!r}, which there is already: choose another name")
        STRATEGIES.add(name, Strategy(description, function, leaves), function, form=r"[A-Za-z]\w*(:<\w+>)?")
        return function

    return register


def trained_rule(strategy: str | tuple[str, ...], paths: tuple[str, ...], stages: Stages) -> Rule:
    """Whether the parameter of a path trains.

    strategy: names of STRATEGIES joined with '+', or one or more regular expressions (`re.search`) of what is frozen.
    Raises UserError for a name, an argument or a pattern that does not fit the network.
    """
    if isinstance(strategy, str):
        if gradual_epochs(strategy) is not None:
            raise UserError(
                f"freeze {strategy!r} is a run of phases and not one plan: write it in config.freeze alone, and leave "
                f"config.phases empty; a single plan is one of {', '.join(allowed())}"
            )
        parts = strategy.split("+")
        found = [_find(part) for part in parts]
        if any(found):
            for part, named in zip(parts, found, strict=True):
                if named is None:
                    raise UserError(
                        f"freeze {strategy!r}: {part!r} is no strategy: allowed are {', '.join(allowed())}; a regular "
                        f"expression stands in a tuple, such as ({strategy!r},)"
                    )
            return _union([named for named in found if named is not None], paths, stages)
    patterns = (strategy,) if isinstance(strategy, str) else strategy
    for pattern in patterns:
        check_matches("freeze", pattern, paths, stages)
    return lambda path: not any(re.search(pattern, path) for pattern in patterns)


def gradual_epochs(strategy: object) -> int | None:
    """The k of 'gradual:<k>', None for another strategy. Raises UserError where k is not a whole number above 0."""
    if not isinstance(strategy, str) or not re.match(r"(.*\+)?gradual(:|\+|$)", strategy):
        return None
    epochs = _whole(strategy.removeprefix("gradual:"))
    if epochs < 1:
        raise UserError(
            f"freeze {strategy!r}: allowed is {GRADUAL} alone, k being the epochs from one stage to the next, at "
            "least 1, such as gradual:2"
        )
    return epochs


def check_matches(name: str, pattern: str, paths: tuple[str, ...], stages: Stages) -> None:
    """Raises UserError, naming the config value, if a pattern is no regular expression or matches no path."""
    try:
        matched = any(re.search(pattern, path) for path in paths)
    except (re.error, TypeError) as error:
        raise UserError(f"{name}: {pattern!r} is not a regular expression: {error}") from error
    if not matched:
        known = ""
        if name == "freeze":
            known = f"; strategies are {', '.join(allowed())}{near(pattern, (*STRATEGIES, *OTHER_NAMES))}"
        raise UserError(
            f"{name}: {pattern!r} matches no parameter: the stages are {', '.join(stages)}, "
            f"a path reads like {paths[0]!r}{known}"
        )


def _find(part: str) -> tuple[Strategy, str] | None:
    """The strategy of a name as it is written, and its argument."""
    name, colon, argument = part.partition(":")
    key = OTHER_NAMES.get(name, name)
    for known, strategy in STRATEGIES.items():
        if known.partition(":")[:2] == (key, colon):
            return strategy, argument
    return None


def _union(named: list[tuple[Strategy, str]], paths: tuple[str, ...], stages: Stages) -> Rule:
    for strategy, _ in named:
        if strategy is STRATEGIES["norm"] and not any(map(is_norm, paths)):
            raise UserError("freeze 'norm': this network has no normalisation; 'backbone' trains its last stage alone")
    if any(strategy.leaves is is_adapter for strategy, _ in named) and not any(map(is_adapter, paths)):
        raise UserError("freeze 'lora': this network has no adapters, which it is built with: set it as config.freeze")
    whole = {stage for strategy, argument in named for stage in strategy.stages(argument, stages)}
    if unknown := whole - set(stages):
        raise UserError(
            f"freeze trains the stage {min(unknown)!r}, which there is not: allowed are {', '.join(stages)}"
        )
    leaves = [strategy.leaves for strategy, _ in named]
    return lambda path: path.split("/")[0] in whole or any(rule(path) for rule in leaves)


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def default_strategies(stages: tuple[str, ...], paths: Iterable[str]) -> tuple[str, ...]:
    """Those worth comparing: from the input on ever more stages frozen, then what trains a thin slice of each layer.

    paths: of the parameters; without one of normalisation there is no 'norm'.
    'until:' the last stage but one is 'backbone', and stands here under that name only.
    """
    thin = ("norm", "bitfit") if any(map(is_norm, paths)) else ("bitfit",)
    return ("none", *(f"until:{stage}" for stage in stages[:-2]), "backbone", *thin)


def value_of(text: str) -> str | tuple[str, ...]:
    """The value of `config.freeze` that a text stands for: patterns where it is a tuple of them, else the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    several = isinstance(value, tuple) and value and all(isinstance(part, str) for part in value)
    return value if several or isinstance(value, str) else text


def split_cached(name: str) -> tuple[str, bool]:
    """The strategy that a name stands for, and whether from cached features: 'cached' is 'cached:backbone'."""
    head, _, rest = name.partition(":")
    return (rest or "backbone", True) if head == CACHED else (name, False)
