"""Test-time augmentation: the mean logits of an image and of changed views of it, and what that costs."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covidjax.data.augment import Augmentation, augment, augmentation_of
from covidjax.errors import UserError
from covidjax.weights.workdir import Trained

REPEATS = 3  # of a batch whose time is taken


@dataclasses.dataclass(frozen=True)
class Views:
    """An image as it is, and `count` - 1 views of it, changed as in training by keys of `seed`.

    Each view changes all images in the same way, so that a result depends on no batch.
    """

    count: int
    augmentation: Augmentation
    seed: int = 0

    def mean_logits(self, forward: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
        """The mean over the views. images: [batch, height, width, channels] floating, values 0 to 255.

        forward: images -> logits [batch, ...].
        """

        def view(key: jax.Array) -> jax.Array:
            return forward(jax.vmap(lambda image: augment(key, image[None], self.augmentation)[0][0])(images))

        keys = jax.random.split(jax.random.key(self.seed), self.count - 1)
        changed = jax.lax.map(view, keys)
        return (forward(images) + jnp.sum(changed, axis=0)) / self.count


def views_of(trained: Trained, count: int) -> Views | None:
    """The views of a network's run; None of one view.

    Raises UserError for fewer than one, a run without augmentation, and masks that would be moved with their images.
    """
    if count < 1:
        raise UserError(f"--views is {count}: allowed are whole numbers from 1, which is the image as it is")
    if count == 1:
        return None
    augmentation = augmentation_of(trained.config.augment)
    if augmentation == Augmentation():
        raise UserError("--views changes images as the training did, and the run has no config.augment: leave it out")
    if trained.task.masks and augmentation.moves:
        raise UserError("--views would move the masks with the images (rotate, shift, scale, zoom, flip, crop_scale)")
    return Views(count, augmentation)


def price(
    one: Callable[[np.ndarray], Any], several: Callable[[np.ndarray], Any], batch: np.ndarray
) -> Mapping[str, float]:
    """Images per second of two networks, after one pass that compiles them: the best of `REPEATS` passes of a batch."""

    def rate(network: Callable[[np.ndarray], Any]) -> float:
        network(batch)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(network(batch))
            times.append(time.perf_counter() - start)
        return len(batch) / min(times)

    return {"images_per_second": rate(several), "images_per_second_of_one": rate(one)}


def told(count: int, price: Mapping[str, float]) -> str:
    """A note on the price."""
    several, one = price["images_per_second"], price["images_per_second_of_one"]
    return f"the mean of {count} views of each image: {several:.3g} images/s, of one view {one:.3g}"
