"""What an audit finds, how serious it is, and the verdict in a line."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.data.examples import Examples
from covidjax.errors import SHOWN, some_of
from covidjax.process import path_of

SERIOUS, WARNING, NOTE = "serious", "warning", "note"
NAME = "audit.json"
SERIOUSNESS = (SERIOUS, WARNING, NOTE)
KINDS = {
    "patients": "patients in several splits",
    "copies": "copies of an image",
    "near_copies": "nearly the same image",
    "slices": "slices of a stack in several splits",
    "shortcut": "label predictable from what is not anatomy",
    "damaged": "damaged files",
    "levels": "pixels of one level, or few",
    "counts": "few patients in the test split",
    "unknown": "what could not be looked for",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding.

    kind: of KINDS; seriousness: of SERIOUSNESS; text: a sentence without its full stop
    numbers: what was measured, by name; names: ten of the images or patients at most, of `count`
    pairs: of images that are shown beside each other, ten at most
    """

    kind: str
    seriousness: str
    text: str
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ()
    count: int = 0
    pairs: tuple[tuple[str, str], ...] = ()


def of_names(kind: str, seriousness: str, text: str, names: Iterable[str], **numbers: Any) -> Finding:
    """A finding on images or patients of these names, which stand in the text too, ten of them and a count."""
    own = tuple(names)
    return Finding(kind, seriousness, f"{text}: {some_of(own)}", numbers, own[:SHOWN], len(own))


def verdict(findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many findings of each seriousness, the gravest one, and a line that says so. findings: of audit.json."""
    counts = {each: sum(one["seriousness"] == each for one in findings) for each in SERIOUSNESS}
    gravest = next((each for each in (SERIOUS, WARNING) if counts[each]), "clean")
    if gravest == "clean":
        return {"gravest": gravest, "counts": counts, "text": "nothing serious was found"}
    kinds = dict.fromkeys(
        one["numbers"].get("cue", KINDS[one["kind"]]) for one in findings if one["seriousness"] == gravest
    )
    words = {SERIOUS: "serious findings", WARNING: "warnings"}
    told = [f"{counts[each]} {word if counts[each] > 1 else word[:-1]}" for each, word in words.items() if counts[each]]
    return {"gravest": gravest, "counts": counts, "text": f"{' and '.join(told)}: {some_of(kinds)}"}


def fingerprint(names: Sequence[str], labels: Sequence[str], patients: Sequence[str], digests: Sequence[str]) -> str:
    """SHA-256 of a split as it is listed and of its files: n each; no digests where the source has no files."""
    return hashlib.sha256(json.dumps([*map(list, (names, labels, patients, digests))]).encode()).hexdigest()


def fingerprint_of(examples: Examples) -> str:
    """The `fingerprint` of a decoded split."""
    return fingerprint(examples.names, examples.label_names, examples.patients, examples.digests)


def told_of(workdir: Path, named: str, examples: Sequence[Examples]) -> dict[str, Any]:
    """The verdict of an audit on the splits of a run, with a note to print; {} where there is no audit.

    named: `config.audit`, a path; '' is audit.json in the workdir. An audit of other images gives its note alone.
    Raises UserError where the file that is named is missing or no audit.
    """
    path = path_of(named) if named else workdir / NAME
    if not named and not path.exists():
        return {}
    found, known = files.entry(path, "verdict"), files.entry(path, "splits")
    other = [each.split for each in examples if known.get(each.split) != fingerprint_of(each)]
    if other:
        advice = "its verdict does not count; run launch/audit.py again"
        return {"note": f"{path} is an audit of other images of {' and '.join(other)}: {advice}"}
    return {**found, "note": f"audit of the data: {found['text']} ({path})"}
