"""Views of an image are averaged as their logits would be by hand, whatever batch the image is in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.config import default_config
from covidjax.data.augment import Augmentation, augment
from covidjax.errors import UserError
from covidjax.evaluate.network import inference
from covidjax.evaluate.views import Views, views_of
from tests.runs.untrained import PIXELS, untrained

CHANGES = Augmentation(rotate=10.0, shift=0.1, brightness=0.2, flip=True)


def test_logits_are_the_mean_over_the_image_and_its_views_in_any_batch() -> None:
    trained = untrained("cnn", ("a", "b"), model__num_blocks=2)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
    found = [inference(*trained.network, size, 1, Views(3, CHANGES, seed=4))(images) for size in (1, 2, 5)]
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    np.testing.assert_allclose(found[1], found[2], atol=1e-5)

    def logits(pixels: jax.Array) -> np.ndarray:
        return np.asarray(trained.model.apply(trained.variables, trained.preprocessing(pixels)))

    floating, parts = jnp.asarray(images, jnp.float32), []
    for key in jax.random.split(jax.random.key(4), 2):
        views = [augment(key, image[None], CHANGES)[0] for image in floating]
        parts.append(logits(jnp.concatenate(views)))
    np.testing.assert_allclose(found[2], (logits(floating) + parts[0] + parts[1]) / 3, atol=1e-5)
    assert np.abs(parts[0] - parts[1]).max() > 1e-3


def test_views_that_a_run_cannot_have_are_refused() -> None:
    trained = untrained("cnn", ("a", "b"), model__num_blocks=2)
    assert views_of(trained, 1) is None
    still, masks = default_config(), untrained("unet", PIXELS)
    with pytest.raises(UserError, match="the run has no config.augment"):
        views_of(dataclasses.replace(trained, config=still), 4)
    masks.config.augment.rotate = 5.0
    with pytest.raises(UserError, match="would move the masks"):
        views_of(masks, 4)
    with pytest.raises(UserError, match="--views is 0"):
        views_of(trained, 0)
