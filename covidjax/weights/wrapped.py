"""Names of tensors without what training code, compilers and larger models put around them."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from covidjax.errors import UserError, some_of
from covidjax.weights.pth import AVERAGE

# What PyTorch puts into a name for a wrapped module, wherever it stands.
TRANSPARENT = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OUTSIDE = "../"  # before a name outside the network that would stand for another tensor inside


@dataclasses.dataclass(frozen=True)
class Unwrapped:
    """tensors: by the names of the network; outside: names of those that are none of its; told: in words, or ''."""

    tensors: dict[str, np.ndarray]
    outside: frozenset[str] = frozenset()
    told: str = ""


def unwrap(tensors: Mapping[str, np.ndarray], wanted: Iterable[Collection[str]]) -> Unwrapped:
    """Finds the prefix under which a file has all the names of a network, or else most of them.

    wanted: by preference, the sets of names that the network may have, each in its order.
    Raises UserError where the file holds the network several times, one of which is no moving average of another.
    """
    plain = _plain(tensors)
    likely = (0, "", "")
    for names in filter(None, wanted):
        anchor = next(iter(names))
        prefixes = [name.removesuffix(anchor) for name in plain if name.endswith(anchor)]
        found = {prefix: sum(prefix + name in plain for name in names) for prefix in prefixes if _ends(prefix)}
        whole = [prefix for prefix, count in found.items() if count == len(names)]
        once = [prefix for prefix in whole if not AVERAGE.search(prefix)] or whole
        if len(once) > 1 and "" not in once:
            raise UserError(
                f"the file holds this network {len(once)} times: below {some_of(map(repr, once))}: which of them is "
                "meant is not known: keep one"
            )
        if once:
            chosen = "" if "" in once else once[0]
            return _below(chosen, anchor, tensors, plain, [prefix for prefix in whole if prefix not in once])
        most = ((count, prefix, anchor) for prefix, count in found.items() if 2 * count > len(names))
        likely = max((likely, *most), key=lambda each: each[0])
    return _below(*likely[1:], tensors, plain, [])


def described(shapes: Mapping[str, Collection[int]]) -> str:
    """The number of tensors, their names and shapes."""
    return f"{len(shapes)} tensors, {some_of(f'{name} {list(shape)}' for name, shape in shapes.items())}"


def _ends(prefix: str) -> bool:
    """Whether it ends where a name does."""
    return not prefix or prefix.endswith((".", "/"))


def _plain(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The name in the file by the name without what is transparent; the same where two would become one."""
    short = {name: ".".join(part for part in name.split(".") if part not in TRANSPARENT) or name for name in tensors}
    if len(set(short.values())) < len(short):
        return {name: name for name in tensors}
    return {name: original for original, name in short.items()}


def _below(
    prefix: str, anchor: str, tensors: Mapping[str, np.ndarray], plain: Mapping[str, str], averages: Collection[str]
) -> Unwrapped:
    """What is below a prefix, without it, and all else as outside. averages: prefixes of what is left though whole."""
    left = tuple(averages)
    below = [name for name in plain if name.startswith(prefix) and not name.startswith(left)]
    inside = {name: name.removeprefix(prefix) for name in below}
    taken = set(inside.values())
    outside = {name: OUTSIDE + name if name in taken else name for name in plain if name not in inside}
    names = {name: inside.get(name) or outside[name] for name in plain}
    whole = plain.get(prefix + anchor, "")
    cut = whole.removesuffix(anchor) if whole.endswith(anchor) else prefix
    told = [f"read without the prefix {cut!r}"] if cut else []
    told += [f"not the average below {some_of(map(repr, averages))}"] if averages else []
    renamed = {names[name]: tensors[original] for name, original in plain.items()}
    return Unwrapped(renamed, frozenset(outside.values()), ", ".join(told))
