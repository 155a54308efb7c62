"""Splits by patient: no patient is trained on and tested on."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from covidjax.data.examples import Examples
from covidjax.errors import UserError

HELD_OUT_PARTS = 8


def hold_out_eighth(labels: Sequence[int], patients: Sequence[str] | None) -> np.ndarray:
    """Choose about one eighth of the images, with the class proportions of the whole and no patient torn apart.

    The first fold of scikit-learn's StratifiedGroupKFold(8, shuffle=True, random_state=0), or of StratifiedKFold with
    the same arguments where `patients` is None. It depends on nothing else: no training seed moves it.

    labels: [n] class indices
    patients: n patient identifiers, or None: images are held out one by one
    returns: [n] bool, True = held out
    raises UserError if nothing could be held out, or if a class would have no image left to train on
    """
    label_array = np.asarray(labels)
    held_out = np.zeros(len(label_array), bool)
    num_groups = len(label_array) if patients is None else len(set(patients))
    unit = "images" if patients is None else "patients"
    too_few = f"{num_groups} {unit} are too few to hold out an eighth for val: add data, or a val folder of your own"
    splitter = StratifiedKFold if patients is None else StratifiedGroupKFold
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")
            folds = splitter(HELD_OUT_PARTS, shuffle=True, random_state=0)
            _, chosen = next(folds.split(np.zeros(len(label_array)), label_array, patients))
    except ValueError as error:
        raise UserError(too_few) from error
    held_out[chosen] = True
    if not held_out.any() or set(label_array[~held_out]) != set(label_array):
        raise UserError(too_few)
    return held_out


def assign_fold(folds: Sequence[int], fold: int, labels: Sequence[int], patients: Sequence[str]) -> tuple[str, ...]:
    """Name the split of every image for one round of cross-validation.

    'test' is fold `fold`, 'val' one patient-grouped eighth of the rest (see `hold_out_eighth`), 'train' the others.
    All arguments but `fold` have one entry per image; so has the result. Raises UserError for a fold that is not there.
    """
    available = sorted(set(folds))
    if fold not in available:
        raise UserError(
            f"dataset.fold is {fold}; allowed: {', '.join(map(str, available))}, or -1 for the split folders"
        )
    rest = [index for index, number in enumerate(folds) if number != fold]
    if not rest:
        raise UserError(f"dataset.fold is {fold} and folds.csv has no other fold: nothing is left to train on")
    assigned = np.full(len(folds), "test", dtype=object)
    held_out = hold_out_eighth([labels[index] for index in rest], [patients[index] for index in rest])
    assigned[rest] = np.where(held_out, "val", "train")
    return tuple(str(split) for split in assigned)


def check_patients_in_one_split(splits: Sequence[str], patients: Sequence[str]) -> None:
    """Raise UserError if a patient is in two splits. Both arguments have one entry per image."""
    by_split: dict[str, set[str]] = {}
    for split, patient in zip(splits, patients, strict=True):
        by_split.setdefault(split, set()).add(patient)
    names = sorted(by_split)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            _refuse_shared(first, second, by_split[first] & by_split[second])


def check_disjoint(a: Examples, b: Examples) -> None:
    """Raise UserError if a patient is in both. Where either has no patient identifiers, nothing can be checked."""
    if a.patients_known and b.patients_known:
        _refuse_shared(a.split, b.split, set(a.patients) & set(b.patients))


def _refuse_shared(first: str, second: str, shared: set[str]) -> None:
    if not shared:
        return
    shown = ", ".join(sorted(shared)[:10]) + (", ..." if len(shared) > 10 else "")
    raise UserError(
        f"{len(shared)} patients are in both {first} and {second}: {shown}; each patient may be in one split only: "
        "move all images of a patient to one split"
    )
