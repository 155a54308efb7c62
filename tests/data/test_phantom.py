"""The phantom: reproducible, honest about patients, solvable by looking at the lungs and not by a light meter."""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from covidjax.data import phantom as module
from covidjax.data.examples import SPLITS
from covidjax.data.phantom import CLASSES, Phantom, load, phantom
from tests.data.images import dataset_config

COVID19, NORMAL, PNEUMONIA = range(3)


def dataset(**changes: int) -> ConfigDict:
    return dataset_config(Path(), name="phantom", **{"seed": 5, "image_size": 32, "num_images": 40, **changes})


def draw(split: str, count: int, size: int) -> list[Phantom]:
    return [phantom(11, split, index, size) for index in range(count)]


def upright(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pose of a patient who stands still: stands in for the random one."""
    steps = ((np.arange(size) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    x, y = np.meshgrid(steps, steps)
    return x, y


@pytest.fixture
def standing_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "coordinates", upright)


def labels_of(images: list[Phantom]) -> np.ndarray:
    return np.array([one.label for one in images])


def test_seed_split_and_index_alone_decide_the_bits() -> None:
    first, second = phantom(3, "val", 17, 48), phantom(3, "val", 17, 48)
    for name in ("image", "lungs", "lesions", "label", "patient"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for seed, split, index in ((4, "val", 17), (3, "test", 17), (3, "val", 18)):
        assert not np.array_equal(first.image, phantom(seed, split, index, 48).image)
    few, many = load(dataset(num_images=13), "train"), load(dataset(num_images=53), "train")
    assert len(few) == 13 and len(many) == 53
    for name in ("images", "labels", "patients"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:13])


def test_size_changes_the_resolution_and_not_the_scene() -> None:
    for index in range(6):
        coarse, fine = phantom(3, "train", index, 32), phantom(3, "train", index, 128)
        assert (coarse.label, coarse.patient) == (fine.label, fine.patient)
        shrunk = fine.image.reshape(32, 4, 32, 4).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), coarse.image.ravel())[0, 1] > 0.95


def test_every_split_is_balanced_at_any_length_and_a_patient_has_one_to_four_images_of_one_class_in_one_split() -> None:
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for images in (draw(split, 200, 16) for split in SPLITS):
        labels = labels_of(images)
        assert set(labels[:3]) == {COVID19, NORMAL, PNEUMONIA}
        for count in range(5, 101, 5):
            np.testing.assert_array_equal(np.bincount(labels[:count], minlength=3) * 5, np.array([1, 2, 2]) * count)
        for one in images:
            groups[one.patient].append(one.label)
    assert {len(labels) for labels in groups.values()} == {1, 2, 3, 4}
    assert all(len(set(labels)) == 1 for labels in groups.values())


@pytest.mark.usefixtures("standing_still")
def test_images_of_a_patient_share_the_anatomy_and_nothing_else() -> None:
    groups: dict[str, list[Phantom]] = collections.defaultdict(list)
    for one in draw("train", 60, 64):
        groups[one.patient].append(one)
    lungs = set()
    for group in groups.values():
        for one in group[1:]:
            np.testing.assert_array_equal(one.lungs, group[0].lungs)
            np.testing.assert_array_equal(one.lesions, group[0].lesions)
            assert not np.array_equal(one.image, group[0].image)
        lungs.add(group[0].lungs.tobytes())
    assert len(lungs) == len(groups)
    exposures = [np.std([one.image.mean() for one in group]) for group in groups.values() if len(group) > 1]
    assert np.mean(exposures) > 10.0


@pytest.mark.parametrize("size", [16, 64])
def test_lesions_are_in_the_lungs_of_the_ill_only_and_the_lungs_within_the_frame(size: int) -> None:
    centres = []
    for one in draw("train", 100, size):
        assert one.lesions.any() == (one.label != NORMAL)
        assert not np.any(one.lesions > one.lungs)
        assert 0.15 < one.lungs.mean() < 0.45
        assert size == 16 or not one.lungs[:, [0, -1]].any()
        centres.append([places.mean() for places in np.nonzero(one.lungs)])
    assert np.all(np.std(centres, axis=0) > 0.5 * size / 32)  # of a pose of its own for each image


@pytest.mark.usefixtures("standing_still")
def test_covid19_is_bilateral_and_peripheral_and_pneumonia_in_one_lung_and_brighter_than_its_mirror() -> None:
    x, differences = np.abs(upright(np.random.default_rng(0), 64)[0]), []
    for one in draw("train", 150, 64):
        left, right = one.lesions[:, :32].any(), one.lesions[:, 32:].any()
        if one.label == COVID19:
            assert left and right
            assert x[one.lesions == 1].mean() > x[one.lungs == 1].mean() + 0.05
        if one.label == PNEUMONIA:
            assert left != right
            place = (one.lesions == 1) & (one.lungs[:, ::-1] == 1)
            image = one.image.astype(float)
            differences.append((image - image[:, ::-1])[place].mean() if place.any() else 0.0)
    assert np.mean(np.array(differences) > 0) > 0.8


def test_pixels_tell_the_classes_unless_the_labels_are_shuffled_and_mean_intensity_does_not() -> None:
    train, test = draw("train", 400, 32), draw("test", 400, 32)
    labels = labels_of(train)
    shuffled = np.random.default_rng(0).permutation(labels)

    def accuracy(model: Any, features: Callable[[Phantom], Any], of: np.ndarray) -> float:
        seen, unseen = (np.array([features(one) for one in images]) for images in (train, test))
        return float(model.fit(seen, of).score(unseen, labels_of(test)))

    linear, rule = make_pipeline(StandardScaler(), RidgeClassifier(1000.0)), DecisionTreeClassifier(max_leaf_nodes=4)
    assert 0.48 < accuracy(linear, lambda one: one.image.ravel() / 255.0, labels) < 0.85
    assert accuracy(linear, lambda one: one.image.ravel() / 255.0, shuffled) < 0.45
    assert accuracy(rule.set_params(random_state=0), lambda one: [one.image.mean()], labels) < 0.5
    assert accuracy(rule, lambda one: [one.image.mean(), one.image.std()], labels) < 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_load_returns_what_examples_promises(channels: int) -> None:
    train, val = (load(dataset(channels=channels), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (40, 10)
    assert train.images.shape == (40, 32, 32, channels) and train.images.dtype == np.uint8
    assert np.all(train.images == train.images[..., :1])
    assert train.labels.shape == (40,) and train.labels.dtype == np.int32
    assert train.classes == CLASSES == tuple(sorted(CLASSES))
    assert train.names[17] == "train/000017" and len(set(train.names)) == 40
    assert train.patients_known and len(train.patients) == 40
    assert train.masks is not None and train.masks.shape == (40, 32, 32) and train.masks.dtype == np.uint8
    one = phantom(5, "train", 1, 32)
    np.testing.assert_array_equal(train.images[1, ..., 0], one.image)
    np.testing.assert_array_equal(train.masks[1] == 2, one.lesions == 1)
    np.testing.assert_array_equal(train.masks[1] > 0, one.lungs == 1)


def test_fingerprint_follows_the_content() -> None:
    changes: tuple[dict[str, int], ...] = ({}, {"seed": 6}, {"image_size": 33}, {"channels": 3}, {"num_images": 44})
    found = [load(dataset(**change), "val").fingerprint for change in changes]
    assert found[0] == load(dataset(), "val").fingerprint
    assert len({*found, load(dataset(), "test").fingerprint}) == 6
