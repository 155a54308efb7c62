"""Losses of masks: (logits [batch, height, width, classes], labels [batch, height, width]) -> losses [batch].

Every loss is a sum over the pixels of one image; the mean over the batch is the caller's. So a batch gives the same in
parts as in one, and an image without a lesion is no different in the company of one with many.

The cross-entropies and the focal loss are means over the pixels, each times the weight of its class, divided by the
number of pixels (not by the sum of the weights), as `covidjax.losses` has it for images.

Dice and Tversky compare, for each class and over the pixels of one image, the softmax probabilities p with the mask g,
which is 0 or 1:

    hits = sum p g,  false = sum p (1 - g),  missed = sum (1 - p) g
    overlap = (2 hits + 1) / (2 (hits + (1 - beta) false + beta missed) + 1)

The loss is 1 - overlap, averaged over the classes by their weights. The background is one of them: without it a U-Net
on lung masks was stuck calling everything lung. Weights such as (0, 1) leave it out. The smoothing, one pixel, makes
a class that is in neither mask nor prediction an overlap of 1, and less the larger it is predicted without being there.
Tversky (Salehi et al. 2017) has beta from the config; Dice (Milletari et al. 2016, without their squares) is the case
of one half: (2 sum p g + 1) / (sum p + sum g + 1).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from covidjax import losses
from covidjax.errors import UserError
from covidjax.losses import LossFunction

SMOOTHED = ("softmax_cross_entropy", "sigmoid_cross_entropy", "cross_entropy_dice")
LOSSES = (*SMOOTHED, "dice", "focal", "tversky")

Weights = tuple[float, ...] | None


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, class_weights: Weights = None, label_smoothing: float = 0.0
) -> jax.Array:
    """`losses.softmax_cross_entropy` of each pixel, averaged over the image."""
    pixels = losses.softmax_cross_entropy(logits, labels, class_weights=class_weights, label_smoothing=label_smoothing)
    return jnp.mean(pixels, axis=(1, 2))


def sigmoid_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, class_weights: Weights = None, label_smoothing: float = 0.0
) -> jax.Array:
    """Binary cross-entropy: `losses.sigmoid_cross_entropy` of each pixel, averaged over the image."""
    pixels = losses.sigmoid_cross_entropy(logits, labels, class_weights=class_weights, label_smoothing=label_smoothing)
    return jnp.mean(pixels, axis=(1, 2))


def dice(logits: jax.Array, labels: jax.Array, *, class_weights: Weights = None) -> jax.Array:
    """1 - soft Dice: the Tversky loss in which false and missed pixels weigh the same."""
    return tversky(logits, labels, beta=0.5, class_weights=class_weights)


def cross_entropy_dice(
    logits: jax.Array, labels: jax.Array, *, class_weights: Weights = None, label_smoothing: float = 0.0
) -> jax.Array:
    """The sum of `softmax_cross_entropy` and `dice`."""
    pixels = softmax_cross_entropy(logits, labels, class_weights=class_weights, label_smoothing=label_smoothing)
    return pixels + dice(logits, labels, class_weights=class_weights)


def focal(logits: jax.Array, labels: jax.Array, *, gamma: float, class_weights: Weights = None) -> jax.Array:
    """(1 - p)^gamma times the cross-entropy of each pixel, averaged over the image (Lin et al. 2017).

    p: the softmax probability of the pixel's class. gamma: 0 or more; 0 is the cross-entropy.
    """
    pixels = losses.softmax_cross_entropy(logits, labels)
    # The derivative of 0^gamma is infinite for gamma below 1, where p rounds to 1: such a pixel is left out.
    unsure = pixels > jnp.finfo(pixels.dtype).tiny
    safe = jnp.where(unsure, pixels, 1.0)
    values = jnp.where(unsure, (-jnp.expm1(-safe)) ** gamma * safe, 0.0)
    if class_weights is not None:
        values = values * jnp.asarray(class_weights, values.dtype)[labels]
    return jnp.mean(values, axis=(1, 2))


def tversky(logits: jax.Array, labels: jax.Array, *, beta: float, class_weights: Weights = None) -> jax.Array:
    """1 - the overlap, see the top of this module. beta: the weight of missed pixels, from 0 to 1."""
    probabilities = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    is_class = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    hits = jnp.sum(probabilities, axis=(1, 2), where=is_class)
    false = jnp.sum(probabilities, axis=(1, 2)) - hits
    missed = jnp.sum(is_class, axis=(1, 2)) - hits
    overlap = (2 * hits + 1) / (2 * (hits + (1 - beta) * false + beta * missed) + 1)
    weights = jnp.asarray((1.0,) * overlap.shape[-1] if class_weights is None else class_weights, overlap.dtype)
    return jnp.sum((1 - overlap) * weights, axis=-1) / jnp.sum(weights)


def loss_function(loss_config: Any, class_weights: Weights) -> LossFunction:
    """The loss of a config section: (logits, labels) -> [batch]. See `losses.loss_function`, which is for images.

    loss_config: name and, where the loss has it, label_smoothing, focal_gamma, tversky_beta. class_weights: what
    `losses.class_weights` gave for the masks. Raises UserError for an unknown name, and for label smoothing of a loss
    that has none.
    """
    name = loss_config.name
    if name not in LOSSES:
        raise UserError(f"loss.name is {name!r}; allowed: {', '.join(LOSSES)}; set it to one of these")
    options: dict[str, Any] = {"class_weights": class_weights}
    if name in SMOOTHED:
        options["label_smoothing"] = float(loss_config.label_smoothing)
    elif loss_config.label_smoothing:
        raise UserError(
            f"loss.label_smoothing is {loss_config.label_smoothing}, which {name} does not have; set it to 0, or "
            f"choose one of {', '.join(SMOOTHED)}"
        )
    if name == "focal":
        options["gamma"] = float(loss_config.focal_gamma)
    if name == "tversky":
        options["beta"] = float(loss_config.tversky_beta)
    functions = (softmax_cross_entropy, sigmoid_cross_entropy, cross_entropy_dice, dice, focal, tversky)
    return functools.partial({function.__name__: function for function in functions}[name], **options)
