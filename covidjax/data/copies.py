"""Images that are there more than once, byte for byte: in two splits, or in two classes."""

import collections
import dataclasses
from collections.abc import Iterable

from covidjax.data.examples import Examples
from covidjax.errors import some_of


@dataclasses.dataclass(frozen=True)
class Seen:
    """An image of a split. digest: SHA-256 of its bytes; label: '' where it has a mask."""

    digest: str
    name: str
    split: str
    label: str


def seen(examples: Examples) -> list[Seen]:
    """The images of a decoded split; none where its source has no digests."""
    rows = zip(examples.digests, examples.names, examples.label_names, strict=bool(examples.digests))
    return [Seen(digest, name, examples.split, label) for digest, name, label in rows]


def copies(images: Iterable[Seen]) -> list[str]:
    """Notes on images that are in two splits or in two classes."""
    groups: dict[str, list[Seen]] = collections.defaultdict(list)
    for image in images:
        groups[image.digest].append(image)
    several = [group for group in groups.values() if len(group) > 1]
    notes = []
    for what, consequence, key in (
        ("splits", "figures of the one flatter what was learnt from the other", lambda one: one.split),
        ("classes", "one of the labels is wrong", lambda one: one.label),
    ):
        found = [group for group in several if len({key(one) for one in group}) > 1]
        if found:
            told = some_of((" = ".join(f"{one.name} ({key(one)})" for one in group[:3]) for group in found), "; ")
            notes.append(f"{len(found)} images are in two {what}, byte for byte: {told}; {consequence}")
    return notes
