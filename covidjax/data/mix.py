"""Images of a batch mixed with their neighbours, on the device, from a key; the loss is mixed as the images are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from covidjax.data.augment import Augmentation


class Mixed(NamedTuple):
    """Labels of mixed images: `share` [batch] float of the label `first` [batch], the rest of `second` [batch]."""

    first: jax.Array
    second: jax.Array
    share: jax.Array


def mix(
    key: jax.Array, images: jax.Array, labels: jax.Array, augmentation: Augmentation, axis: str | None = None
) -> tuple[jax.Array, Mixed]:
    """Each image of a batch with the one after it, the last with the first: batches are in random order.

    images: [batch, height, width, channels] floating; labels: [batch] int. With `mixup` a weighted mean of the two
    (Zhang et al. 2018), with `cutmix` a box of the second one in the first (Yun et al. 2019); each image with its own
    share, of Beta(alpha, alpha). With both alphas each image draws one of the two ways, with probability one half.
    axis: the mapped axis over whose devices the images are a part of the batch; they mix as in the whole of it.
    """
    mixup_key, cutmix_key, box_key, choice_key = jax.random.split(key, 4)
    count, height, width = images.shape[:3]
    whole = count * (lax.axis_size(axis) if axis else 1)

    def own(numbers: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(numbers, lax.axis_index(axis) * count, count) if axis else numbers

    def shares(key: jax.Array, alpha: float) -> jax.Array:
        return own(jax.random.beta(key, alpha, alpha, (whole,), images.dtype))

    others, second = (following(array, axis) for array in (images, labels))
    mixed, share = images, jnp.ones(count, images.dtype)
    if augmentation.mixup:
        share = shares(mixup_key, augmentation.mixup)
        part = share[:, None, None, None]
        mixed = part * images + (1 - part) * others
    if augmentation.cutmix:
        centers = own(jax.random.uniform(box_key, (whole, 2), images.dtype))
        rows, columns = (
            _inside(center, shares(cutmix_key, augmentation.cutmix), size)
            for center, size in zip(centers.T, (height, width), strict=True)
        )
        box = rows[:, :, None] & columns[:, None, :]
        cut, cut_share = jnp.where(box[..., None], others, images), 1 - jnp.mean(box, axis=(1, 2), dtype=images.dtype)
        chosen = jnp.full(count, not augmentation.mixup)
        if augmentation.mixup:
            chosen = own(jax.random.bernoulli(choice_key, 0.5, (whole,)))
        mixed, share = jnp.where(chosen[:, None, None, None], cut, mixed), jnp.where(chosen, cut_share, share)
    return mixed, Mixed(labels, second, share)


def blended(function: Callable[[jax.Array, jax.Array], jax.Array], logits: jax.Array, labels: Any) -> jax.Array:
    """A loss, or another figure of each example, [batch]: of mixed labels the mean of both by their shares."""
    if not isinstance(labels, Mixed):
        return function(logits, labels)
    first, second = function(logits, labels.first), function(logits, labels.second)
    share = labels.share.astype(first.dtype)
    return share * first + (1 - share) * second


def following(array: jax.Array, axis: str | None) -> jax.Array:
    """The array [batch, ...] with each example in the place of the one before it, around the whole batch."""
    if axis is None:
        return jnp.roll(array, -1, axis=0)
    size = lax.axis_size(axis)
    first_of_next = lax.ppermute(array[:1], axis, [((to + 1) % size, to) for to in range(size)])
    return jnp.concatenate([array[1:], first_of_next])


def _inside(center: jax.Array, share: jax.Array, size: int) -> jax.Array:
    """The pixels of one side [size] that lie in the boxes: [batch, size] bool. center: of 0..1, cut off at the edge."""
    half = jnp.sqrt(1 - share) / 2
    low, high = (jnp.round((center + sign * half) * size)[:, None] for sign in (-1, 1))
    pixels = jnp.arange(size)
    return (pixels >= low) & (pixels < high)
