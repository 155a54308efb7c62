"""Findings as tables name them, and what a set of images with findings lacks."""

import difflib
from collections.abc import Collection, Sequence

import numpy as np

from covidjax.data.datasets.records import Record
from covidjax.data.findings import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from covidjax.errors import some_of


def named(text: str, names: Sequence[str], nothing: str, separator: str = "|") -> tuple[int, ...]:
    """The findings that a text names, in any order; the others are absent. nothing: what stands for none of them.

    Raises ValueError for a name that is none of them, and for `nothing` beside another.
    """
    found = [part.strip() for part in text.split(separator) if part.strip()]
    if strange := [name for name in found if name not in names and name != nothing]:
        near = difflib.get_close_matches(strange[0], [*names, nothing], 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(names)}, {nothing}"
        raise ValueError(f"{some_of(map(repr, strange))} is no finding of the set; {hint}")
    if not found or (nothing in found and len(found) > 1):
        raise ValueError(f"the findings are {text!r}: write {nothing!r} alone, or what there is")
    return tuple(PRESENT if name in found else ABSENT for name in names)


def voted(votes: Collection[Sequence[int]]) -> tuple[int, ...]:
    """The findings that more than half of the readers see; uncertain where fewer do, absent where none does."""
    shares = np.mean([[vote == PRESENT for vote in own] for own in votes], axis=0)
    return tuple(PRESENT if share > 0.5 else UNCERTAIN if share > 0 else ABSENT for share in shares.tolist())


def told_of_findings(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Notes on findings that no image has, and on images of which nothing is known; none of sets without findings."""
    if not names:
        return []
    found = np.array([record.findings for record in records])
    notes = []
    if missing := [name for name, own in zip(names, found.T, strict=True) if not (own == PRESENT).any()]:
        notes.append(f"no image is known to have {some_of(missing)}")
    if blank := [record.name for record, own in zip(records, found, strict=True) if (own == UNKNOWN).all()]:
        notes.append(f"nothing is known of {len(blank)} of {len(records)} images: {some_of(blank)}")
    return notes
