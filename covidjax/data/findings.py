"""What is known of a finding in an image, and what becomes of labels that are uncertain."""

from collections.abc import Mapping, Sequence

import numpy as np

from covidjax.errors import UserError, some_of

PRESENT, ABSENT, UNCERTAIN, UNKNOWN = 1, 0, -1, -2
# Of config.dataset.uncertain (Irvin et al. 2019, section 4.1: U-Ignore, U-Zeros, U-Ones).
POLICIES: Mapping[str, int] = {"ignore": UNKNOWN, "zeros": ABSENT, "ones": PRESENT}

# Of the cells of a table, and how its columns of findings begin.
VALUES: Mapping[str, int] = {"1": PRESENT, "0": ABSENT, "-1": UNCERTAIN, "": UNKNOWN}
COLUMN = "finding:"


def valued(texts: Sequence[str]) -> tuple[int, ...]:
    """Findings from the cells of a row: 1, 0, -1 uncertain, or nothing. Raises ValueError for another text."""
    found = []
    for text in texts:
        short = text.strip().replace(",", ".").removesuffix(".0")
        if short not in VALUES:
            raise ValueError(f"a finding is {text!r}: allowed are 1, 0, -1 (uncertain) and nothing (unknown)")
        found.append(VALUES[short])
    return tuple(found)


def settled(findings: np.ndarray, names: Sequence[str], policy: str | Sequence[tuple[str, str]]) -> np.ndarray:
    """Findings [n, findings] int8 with labels in place of uncertain ones.

    names: of the findings; policy: one of `POLICIES` for all, or pairs of a finding and one; the others are ignored.
    Raises UserError for a pair of a finding that is not there.
    """
    own = dict.fromkeys(names, policy) if isinstance(policy, str) else dict(policy)
    if strange := [name for name in own if name not in names]:
        raise UserError(f"dataset.uncertain names {some_of(strange)}; the findings are {some_of(names)}: name these")
    labels = np.array([POLICIES[own.get(name, "ignore")] for name in names], np.int8)
    return np.where(findings == UNCERTAIN, labels, findings)
