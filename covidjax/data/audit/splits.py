"""What is wrong with splits and files: patients and stacks torn apart, few patients, damaged and empty images."""

import collections
import itertools
import re
from typing import Any

import numpy as np
from scipy import stats

from covidjax.data.audit.copies import details
from covidjax.data.audit.findings import NOTE, SERIOUS, WARNING, Finding, of_names
from covidjax.data.audit.reading import Image64, Images
from covidjax.data.examples import SPLITS
from covidjax.data.levels import DARK, FEW, ONE
from covidjax.data.walk import without_ending
from covidjax.errors import SHOWN, some_of

NUMBERED = re.compile(r"(.*?)[-_ .%(]*(\d+)[)]?")
ALIKE = 0.6  # correlation of detail between neighbours from which numbered images are slices of a stack
WIDE = 0.2  # of an interval that a class of the test split gets at best


def patients(data: Images) -> list[Finding]:
    """Patients in several splits, or that none are known."""
    if not data.patients_known:
        text = "no patient ids: whether a patient is in several splits was not looked for"
        return [Finding("unknown", WARNING, text)]
    found: dict[str, set[str]] = collections.defaultdict(set)
    for image in data.images:
        found[image.patient].add(image.split)
    torn = {patient: splits for patient, splits in sorted(found.items()) if len(splits) > 1}
    named = [f"{name} ({', '.join(split for split in SPLITS if split in splits)})" for name, splits in torn.items()]
    return [of_names("patients", SERIOUS, f"{len(torn)} patients are in several splits", named)] if torn else []


def slices(data: Images) -> list[Finding]:
    """Numbered images of one folder and name, in several splits, whose neighbours look alike: slices of a stack.

    Of patients that are known and whole there are none.
    """
    stacks: dict[tuple[str, str], list[tuple[int, Image64]]] = collections.defaultdict(list)
    for image in data.good:
        match = NUMBERED.fullmatch(without_ending(image.name.rpartition("/")[2]))
        if match and (not data.patients_known or image.patient):
            stacks[image.label, match[1]].append((int(match[2]), image))
    torn, pairs = [], []
    for (_, stem), members in sorted(stacks.items()):
        members.sort(key=lambda member: member[0])
        beside = [
            (a, b)
            for (first, a), (second, b) in itertools.pairwise(members)
            if second == first + 1 and (a.patient != b.patient or a.split != b.split)
        ]
        apart = [(a, b) for a, b in beside if a.split != b.split]
        if not apart:
            continue
        first, second = (details(np.stack([pair[side].gray for pair in apart])) for side in (0, 1))
        likeness = (first * second).sum(axis=1)
        if float(np.median(likeness)) >= ALIKE:
            torn.append(f"{stem} ({len(members)} slices)")
            pairs += [(a.name, b.name) for a, b in apart]
    if not torn:
        return []
    text = f"{len(torn)} stacks have neighbouring slices in several splits: {some_of(torn)}"
    return [
        Finding("slices", SERIOUS, text, {"pairs": len(pairs)}, tuple(torn[:SHOWN]), len(torn), tuple(pairs[:SHOWN]))
    ]


def files(data: Images) -> list[Finding]:
    """Damaged files, images of one level, or of few."""
    found, bad = [], [f"{image.name} ({image.bad})" for image in data.images if image.bad]
    if bad:
        found.append(of_names("damaged", SERIOUS, f"{len(bad)} of {len(data.images)} files are damaged", bad))
    for remark, seriousness in ((ONE, WARNING), (DARK, WARNING), (FEW, NOTE)):
        if names := [image.name for image in data.good if remark in image.remarks]:
            found.append(of_names("levels", seriousness, f"{len(names)} images {remark}", names))
    return found


def counts(data: Images) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Images and patients of each class and split, the interval that the test split gives at best, and levels.

    That is Wilson's 95 % interval of a recall of 1 over the patients of a class, or over images without patients.
    Levels: medians of the darkest and of the brightest level of each image, of 256.
    """
    rows, few = [], []
    for label in data.classes or ("",):
        row: dict[str, Any] = {"class": label or "all images"}
        of_label = [image for image in data.good if not data.classes or image.label == label]
        for split in SPLITS:
            own = [image for image in of_label if image.split == split]
            row |= {split: len(own), f"{split}_patients": len({image.patient for image in own})}
        if of_label:
            row["levels"] = [float(np.median([image.levels[end] for image in of_label])) for end in (0, 1)]
        if total := row["test_patients"]:
            interval = stats.binomtest(total, total).proportion_ci(0.95, method="wilson")
            row["best_interval"] = [round(float(interval.low), 4), round(float(interval.high), 4)]
            if interval.high - interval.low > WIDE:
                few.append(f"{row['class']} ({total}: {interval.low:.3f} to 1)")
        rows.append(row)
    unit = "patients" if data.patients_known else "images"
    text = f"{unit} of the test split are so few that even without an error a 95 % interval is wide"
    return ([of_names("counts", NOTE, text, few)] if few else []), rows
