"""Splits by patient: whole patients, classes in proportion, the same draw each time."""

from collections import Counter

import numpy as np
import pytest

from covidjax.data import splits
from covidjax.data.examples import Examples
from covidjax.errors import UserError


def population(num_patients: int = 80) -> tuple[list[int], list[str]]:
    """One to four images of each patient, three classes with a 2 : 1 : 1 mix."""
    generator = np.random.default_rng(0)
    labels, patients = [], []
    for number in range(num_patients):
        for _ in range(generator.integers(1, 5)):
            labels.append((0, 0, 1, 2)[number % 4])
            patients.append(f"p{number}")
    return labels, patients


def examples(split: str, patients: tuple[str, ...], known: bool = True) -> Examples:
    size = len(patients)
    names = tuple(f"{split}/{index}" for index in range(size))
    images = np.zeros((size, 2, 2, 1), np.uint8)
    return Examples(split, images, np.zeros(size, np.int32), names, patients, known, ("x",), "")


def test_hold_out_keeps_patients_whole_and_classes_in_proportion() -> None:
    labels, patients = population()
    held_out = splits.hold_out_eighth(labels, patients)
    assert len(set(zip(patients, held_out.tolist(), strict=True))) == len(set(patients))
    counts = Counter(labels)
    for label, held in Counter(np.array(labels)[held_out].tolist()).items():
        assert abs(held - counts[label] / 8) <= 3
    assert set(np.array(labels)[held_out]) == {0, 1, 2}
    np.random.seed(1)  # scikit-learn's fallback generator
    np.testing.assert_array_equal(held_out, splits.hold_out_eighth(labels, patients))


def test_too_few_to_hold_out_is_an_error_and_no_class_is_taken_whole() -> None:
    few: list[tuple[list[int], list[str] | None]] = [([0, 1, 0, 1], None)]
    few += [([0, 1] * 8, ["same"] * 16), ([0, 1] * 8, ["one", "two"] * 8)]
    for labels, patients in few:
        with pytest.raises(UserError, match="too few to hold out"):
            splits.hold_out_eighth(labels, patients)
    refused = 0
    for rare in range(13):
        try:
            held_out = splits.hold_out_eighth([int(number == rare) for number in range(13)], list(map(str, range(13))))
        except UserError:
            refused += 1
        else:
            assert not held_out[rare]
    assert 0 < refused < 13


def test_fold_is_the_test_split_and_an_eighth_of_the_rest_is_val() -> None:
    labels, patients = population()
    folds = [int(patient[1:]) % 5 for patient in patients]
    seen_in_test: list[int] = []
    for fold in range(5):
        assigned = splits.assign_fold(folds, fold, labels, patients)
        test = [index for index, split in enumerate(assigned) if split == "test"]
        assert {folds[index] for index in test} == {fold}
        seen_in_test += test
        rest = [index for index in range(len(folds)) if folds[index] != fold]
        expected = splits.hold_out_eighth([labels[index] for index in rest], [patients[index] for index in rest])
        assert [assigned[index] == "val" for index in rest] == expected.tolist()
        splits.check_patients_in_one_split(assigned, patients)
    assert sorted(seen_in_test) == list(range(len(labels)))


def test_unknown_fold_names_those_there_are_and_a_single_one_leaves_nothing_to_train_on() -> None:
    with pytest.raises(UserError, match="allowed: 0, 1, or -1"):
        splits.assign_fold([0, 1, 0, 1], 5, [0, 0, 1, 1], ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="no other fold"):
        splits.assign_fold([0, 0], 0, [0, 1], ["a", "b"])


def test_patient_in_two_splits_is_refused() -> None:
    with pytest.raises(UserError, match="both train and val: p2;"):
        splits.check_disjoint(examples("train", ("p1", "p2")), examples("val", ("p2", "p3")))
    with pytest.raises(UserError, match="both test and train: p1;"):
        splits.check_patients_in_one_split(("train", "val", "test"), ("p1", "p2", "p1"))
    splits.check_disjoint(examples("train", ("p1", "p2")), examples("val", ("p3", "p3")))
    splits.check_patients_in_one_split(("train", "train", "test"), ("p1", "p1", "p2"))
    splits.check_disjoint(examples("train", ("a",), known=False), examples("val", ("a",), known=False))


def test_drawn_folds_and_splits_keep_patients_whole_and_classes_in_proportion() -> None:
    labels, patients = population(200)
    folds = np.array(splits.draw_folds(labels, patients))
    assert set(folds) == set(range(5))
    assert len(set(zip(patients, folds.tolist(), strict=True))) == len(set(patients))
    for label, count in Counter(labels).items():
        for fold in range(5):
            assert abs(np.sum((folds == fold) & (np.array(labels) == label)) - count / 5) <= 4
    assert splits.draw_folds(labels, patients) == tuple(folds.tolist())
    with pytest.raises(UserError, match="4 patients are too few for 5 folds"):
        splits.draw_folds([0, 1] * 10, [f"p{number % 4}" for number in range(20)])
    drawn = splits.draw_splits([0] * 400 + [1] * 200, [f"p{number // 2}" for number in range(600)])
    assert Counter(drawn) == {"test": 120, "val": 60, "train": 420}  # a fifth, and an eighth of the rest


def test_a_drawn_subset_has_whole_patients_but_for_the_last_and_depends_on_its_seed_alone() -> None:
    patients = [f"p{number // 5}" for number in range(60)]
    drawn = splits.draw_images(patients, 18, seed=3)
    counts = Counter(patients[number] for number in drawn)
    assert sorted(counts.values()) == [3, 5, 5, 5]
    assert drawn.tolist() == sorted(set(drawn.tolist())) == splits.draw_images(patients, 18, seed=3).tolist()
    assert drawn.tolist() != splits.draw_images(patients, 18, seed=4).tolist()
    assert splits.draw_images(patients, 60).tolist() == list(range(60))
    with pytest.raises(UserError, match="config.dataset.subset is 61, and there are 60 training images: lower it"):
        splits.draw_images(patients, 61)
