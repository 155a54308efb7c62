"""Splits by patient: no patient is trained on and tested on."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from covidjax.data.examples import Examples
from covidjax.errors import UserError, some_of

HELD_OUT_PARTS = 8
NUM_FOLDS = 5


def hold_out_eighth(
    labels: Sequence[int], patients: Sequence[str] | None, among: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """About one eighth of the images, with the class proportions of the whole and no patient torn apart.

    The first fold of scikit-learn's StratifiedGroupKFold(8, shuffle=True, random_state=seed), or of StratifiedKFold
    with the same arguments where `patients` is None. It depends on nothing else: no training seed moves it.

    labels: [n] class indices; patients: n identifiers, or None: images are held out one by one; among: [n] bool, the
    images that count, all by default. Returns [n] bool.
    Raises UserError if nothing could be held out, or if a class would have no image left to train on.
    """
    chosen = np.arange(len(labels)) if among is None else np.flatnonzero(among)
    own_labels, own_patients = np.asarray(labels)[chosen], None if patients is None else np.asarray(patients)[chosen]
    num_groups = len(chosen) if own_patients is None else len(set(own_patients))
    unit = "images" if patients is None else "patients"
    too_few = f"{num_groups} {unit} are too few to hold out an eighth for val: add data, or a val folder of your own"
    held_out, part = np.zeros(len(labels), bool), _parts(HELD_OUT_PARTS, own_labels, own_patients, too_few, seed)[0]
    if not len(part) or set(np.delete(own_labels, part)) != set(own_labels):
        raise UserError(too_few)
    held_out[chosen[part]] = True
    return held_out


def assign_fold(
    folds: Sequence[int], fold: int, labels: Sequence[int], patients: Sequence[str] | None, seed: int = 0
) -> tuple[str, ...]:
    """The split of every image for one round of cross-validation.

    'test' is fold `fold`, 'val' an eighth of the rest, grouped by patient where they are known (see `hold_out_eighth`),
    'train' the others.
    All arguments but `fold` and `seed` have one entry per image; so has the result. Raises UserError for a fold that is
    not there.
    """
    available = sorted(set(folds))
    if fold not in available:
        raise UserError(f"dataset.fold is {fold}; allowed: {some_of(available)}, or -1 for the split folders")
    if len(available) == 1:
        raise UserError(f"dataset.fold is {fold} and folds.csv has no other fold: nothing is left to train on")
    test = np.asarray(folds) == fold
    held_out = hold_out_eighth(labels, patients, ~test, seed)
    return tuple(np.where(test, "test", np.where(held_out, "val", "train")).tolist())


def draw_folds(
    labels: Sequence[int], patients: Sequence[str], num_folds: int = NUM_FOLDS, seed: int = 0
) -> tuple[int, ...]:
    """The fold, from 0, of every image: patients whole, classes in the proportions of the whole.

    Those of scikit-learn's StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed), or of StratifiedKFold
    where no patient has two images; it depends on nothing else.
    labels, patients: n each; without patient identifiers give the names of the images. Raises UserError where there are
    fewer patients than folds.
    """
    folds = np.full(len(labels), -1)
    too_few = f"{len(set(patients))} patients are too few for {num_folds} folds"
    alone = len(set(patients)) == len(patients)  # which is much faster, and the same rule
    for number, chosen in enumerate(_parts(num_folds, labels, None if alone else patients, too_few, seed)):
        folds[chosen] = number
    if set(folds) != set(range(num_folds)):
        raise UserError(too_few)
    return tuple(folds.tolist())


def _parts(num_parts: int, labels: Any, groups: Any, too_few: str, seed: int) -> list[np.ndarray]:
    """The indices of the images in each part. Raises UserError: `too_few`."""
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")
            folds = splitter(num_parts, shuffle=True, random_state=seed)
            return [chosen for _, chosen in folds.split(np.zeros(len(labels)), np.asarray(labels), groups)]
    except ValueError as error:
        raise UserError(too_few) from error


def draw_splits(labels: Sequence[int], patients: Sequence[str], seed: int = 0) -> tuple[str, ...]:
    """'train', 'val' or 'test' for every image: test is fold 0 of `draw_folds`, val an eighth of the rest.

    Where the rest has too few patients for an eighth, val is fold 1. Arguments and errors are those of `draw_folds`.
    """
    folds = draw_folds(labels, patients, seed=seed)
    try:
        return assign_fold(folds, 0, labels, patients, seed)
    except UserError:
        return tuple({0: "test", 1: "val"}.get(fold, "train") for fold in folds)


def draw_images(patients: Sequence[str], count: int, seed: int = 0) -> np.ndarray:
    """Indices, rising, of `count` images: those of patients in a drawn order, of the last one as many as are missing.

    patients: n identifiers, or the names of the images where none are known. NumPy's default generator draws.
    Raises UserError for more images than there are.
    """
    if count > len(patients):
        raise UserError(f"config.dataset.subset is {count}, and there are {len(patients)} training images: lower it")
    generator, numbers = np.random.default_rng(seed), np.arange(len(patients))
    drawn = {patient: place for place, patient in enumerate(generator.permutation(sorted(set(patients))).tolist())}
    order = sorted(generator.permutation(numbers).tolist(), key=lambda number: drawn[patients[number]])
    return np.sort(order[:count])


def told_of_torn(splits: Sequence[str], patients: Sequence[str]) -> str:
    """What to say of patients in two splits; '' where there are none. Both arguments have one entry per image."""
    by_split: dict[str, set[str]] = {}
    for split, patient in zip(splits, patients, strict=True):
        by_split.setdefault(split, set()).add(patient)
    for first, second in itertools.combinations(sorted(by_split), 2):
        if shared := by_split[first] & by_split[second]:
            return (
                f"{len(shared)} patients are in both {first} and {second}: {some_of(sorted(shared))}; each patient may "
                "be in one split only: move all images of a patient to one split"
            )
    return ""


def check_patients_in_one_split(splits: Sequence[str], patients: Sequence[str]) -> None:
    """Raises UserError if a patient is in two splits. Both arguments have one entry per image."""
    if torn := told_of_torn(splits, patients):
        raise UserError(torn)


def check_disjoint(a: Examples, b: Examples) -> None:
    """Raises UserError if a patient is in both. Where either has no patient identifiers, nothing can be checked."""
    if a.patients_known and b.patients_known:
        check_patients_in_one_split([a.split] * len(a) + [b.split] * len(b), a.patients + b.patients)
