"""The masks of an augmented view that is cached lie on its images."""

from pathlib import Path

import numpy as np
import pytest

from covidjax.train import features
from tests.support import small_config
from tests.train.cached import make_case, passes

COUNT, SIZE = 40, 32  # more than one batch of the pass
MOVED = {"augment__rotate": 30.0, "augment__shift": 0.2, "augment__scale": 0.2, "augment__flip": True}


def draw_masks() -> np.ndarray:
    """A rectangle in each image, off the centre."""
    generator = np.random.default_rng(0)
    masks = np.zeros((COUNT, SIZE, SIZE), np.uint8)
    for mask in masks:
        top, left = generator.integers(4, 14, 2)
        mask[top : top + generator.integers(6, 16), left : left + 6] = 1
    return masks


def test_masks_move_with_the_images_of_their_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A prefix that does nothing: its features are the images themselves.
    monkeypatch.setattr(features, "run_prefix", lambda recipe, variables, images: images)
    recipe = make_case(small_config("cnn", model__width=2, freeze="until:block1", batch_size=4, **MOVED), SIZE).recipe
    own, masks = passes(tmp_path), draw_masks()
    views = []
    for view in (0, 1):
        seen = own.features(recipe, {}, 255 * masks[..., None], view)[..., 0] > 127
        views.append(own.targets(recipe, masks, view))
        assert views[view].dtype == np.uint8
        right = (seen == views[view]).mean(axis=(1, 2))
        assert right.min() > 0.97
        assert right.mean() > 0.99
        assert (seen == masks).mean(axis=(1, 2)).mean() < 0.95
    assert (views[0] != views[1]).any(axis=(1, 2)).all()


def test_labels_of_images_and_masks_of_images_as_they_are_stay(tmp_path: Path) -> None:
    recipe = make_case(small_config("cnn", model__width=2, freeze="until:block1", batch_size=4, **MOVED), SIZE).recipe
    own, masks, labels = passes(tmp_path), draw_masks(), np.arange(COUNT)
    assert own.targets(recipe, masks) is masks
    assert own.targets(recipe, labels, 1) is labels
