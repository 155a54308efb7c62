"""Losses of labelled images and of masks per example, and the probabilities that go with each loss.

The mean over the batch is the caller's, also with class weights: `sum(weight * loss) / batch`, the convention of
`class_weight` in Keras (PyTorch divides by the sum of the weights instead).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from covidjax.errors import UserError
from covidjax.registry import Own, Range, Registry

LossFunction = Callable[[jax.Array, jax.Array], jax.Array]
Weights = tuple[float, ...] | None
Made = TypeVar("Made", bound=Callable[..., jax.Array])


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    class_weights: Weights = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Cross-entropy between the softmax of the logits and the labels, times the weight of the label's class.

    logits: [batch, classes] float; labels: [batch] int in 0..classes-1; class_weights: one number per class.
    With `label_smoothing` s the target is 1 - s + s / classes for the label and s / classes for the others.
    Returns [batch], float32 for half-precision logits, else the dtype of the logits.
    """
    logits = at_least_float32(logits)
    log_probabilities = jax.nn.log_softmax(logits)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # `where` rather than a product: 0 * -inf is NaN when a logit is further below the maximum than float32 reaches.
    losses = -jnp.sum(log_probabilities, axis=-1, where=is_label)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * jnp.mean(log_probabilities, axis=-1)
    return _weighted(losses, labels, class_weights)


def sigmoid_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    class_weights: Weights = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Binary cross-entropy of one sigmoid per class against the one-hot label, averaged over the classes.

    What `binary_crossentropy` of Keras gives on such outputs, times the weight of the label's class.
    logits: [batch, classes] float; labels: [batch] int in 0..classes-1; class_weights: one number per class.
    With `label_smoothing` s the targets are 1 - s / 2 for the label and s / 2 for the others.
    Returns [batch], float32 for half-precision logits, else the dtype of the logits.
    """
    logits = at_least_float32(logits)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = (1 - label_smoothing) * targets + label_smoothing / 2
    losses = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
    return _weighted(jnp.mean(losses, axis=-1), labels, class_weights)


def at_least_float32(logits: jax.Array) -> jax.Array:
    """Logits of half precision in float32, others as they are."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _weighted(losses: jax.Array, labels: jax.Array, class_weights: Weights) -> jax.Array:
    if class_weights is None:
        return losses
    return losses * jnp.asarray(class_weights, losses.dtype)[labels]


def correct_share(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the greatest logit is the label's, of pixels for which part of them: [batch] float32."""
    right = jnp.argmax(logits, -1) == labels
    return jnp.mean(right, tuple(range(1, right.ndim)), dtype=jnp.float32)


def probabilities(logits: jax.Array, name: str) -> jax.Array:
    """The distribution over the classes that a model trained with the loss `name` predicts; rows sum to 1.

    'softmax_cross_entropy', 'focal': the softmax. 'sigmoid_cross_entropy': the sigmoids of the classes divided by their
    sum, as labels exclude each other; the sigmoids themselves need not sum to 1.
    A registered loss: what it was registered with, else the softmax.
    logits: [batch, classes] float. Returns [batch, classes], float32 for half-precision logits, else their dtype.
    """
    logits = at_least_float32(logits)
    if isinstance(own := LOSSES.get(name), OwnLoss) and own.probabilities:
        return own.probabilities(logits)
    if name == "sigmoid_cross_entropy":
        # softmax(log(s)) is s / sum(s), without the 0 / 0 of sigmoids that all underflow.
        logits = jax.nn.log_sigmoid(logits)
    return jax.nn.softmax(logits)


def of_pixels(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loss of labelled images as one of masks: of each pixel, averaged over the image (not by the sum of weights)."""

    def averaged(logits: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        return jnp.mean(loss(logits, labels, **options), axis=(1, 2))

    return averaged


def dice(logits: jax.Array, labels: jax.Array, *, class_weights: Weights = None) -> jax.Array:
    """1 - soft Dice, (2 sum p g + 1) / (sum p + sum g + 1): `tversky` with false and missed pixels of one weight."""
    return tversky(logits, labels, beta=0.5, class_weights=class_weights)


def cross_entropy_dice(
    logits: jax.Array, labels: jax.Array, *, class_weights: Weights = None, label_smoothing: float = 0.0
) -> jax.Array:
    """The sum of `softmax_cross_entropy`, averaged over the image, and `dice`."""
    pixels = softmax_cross_entropy(logits, labels, class_weights=class_weights, label_smoothing=label_smoothing)
    return jnp.mean(pixels, axis=(1, 2)) + dice(logits, labels, class_weights=class_weights)


def focal(logits: jax.Array, labels: jax.Array, *, gamma: float, class_weights: Weights = None) -> jax.Array:
    """(1 - p)^gamma times the cross-entropy of each example (Lin et al. 2017), times the weight of the label's class.

    p: the softmax probability of the label. gamma: 0 or more; 0 is the cross-entropy. Shapes as there.
    """
    entropies = softmax_cross_entropy(logits, labels)
    # The derivative of 0^gamma is infinite for gamma below 1, where p rounds to 1: such an example is left out.
    unsure = entropies > jnp.finfo(entropies.dtype).tiny
    safe = jnp.where(unsure, entropies, 1.0)
    values = jnp.where(unsure, (-jnp.expm1(-safe)) ** gamma * safe, 0.0)
    return _weighted(values, labels, class_weights)


def tversky(logits: jax.Array, labels: jax.Array, *, beta: float, class_weights: Weights = None) -> jax.Array:
    """1 - the overlap of each class, averaged over the classes by their weights (Salehi et al. 2017).

    Of softmax probabilities p and a mask g of a class, which is 0 or 1, over the pixels of an image:
    hits = sum p g, false = sum p (1 - g), missed = sum (1 - p) g, and
    overlap = (2 hits + 1) / (2 (hits + (1 - beta) false + beta missed) + 1).
    The background is one of the classes: without it a U-Net on lung masks was stuck calling everything lung. Weights
    such as (0, 1) leave it out. The smoothing, one pixel, makes a class that is in neither mask nor prediction an
    overlap of 1, and less the larger it is predicted without being there. beta: the weight of missed pixels, 0 to 1.
    """
    probabilities = jax.nn.softmax(at_least_float32(logits))
    is_class = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    hits = jnp.sum(probabilities, axis=(1, 2), where=is_class)
    false = jnp.sum(probabilities, axis=(1, 2)) - hits
    missed = jnp.sum(is_class, axis=(1, 2)) - hits
    overlap = (2 * hits + 1) / (2 * (hits + (1 - beta) * false + beta * missed) + 1)
    weights = jnp.asarray((1.0,) * overlap.shape[-1] if class_weights is None else class_weights, overlap.dtype)
    return jnp.sum((1 - overlap) * weights, axis=-1) / jnp.sum(weights)


# Losses by `config.loss.name`, of labelled images and of masks; those of SMOOTHED know label smoothing.
LOSSES: Registry[Callable[..., jax.Array]] = Registry(
    "loss",
    {
        "softmax_cross_entropy": softmax_cross_entropy,
        "sigmoid_cross_entropy": sigmoid_cross_entropy,
        "focal": focal,
    },
)
MASK_LOSSES: Registry[Callable[..., jax.Array]] = Registry(
    "loss",
    {
        **{name: of_pixels(loss) for name, loss in LOSSES.items()},
        "cross_entropy_dice": cross_entropy_dice,
        "dice": dice,
        "tversky": tversky,
    },
)
SMOOTHED = ("softmax_cross_entropy", "sigmoid_cross_entropy", "cross_entropy_dice")


@dataclasses.dataclass(frozen=True, eq=False)
class OwnLoss(Own):
    """A registered loss. probabilities: logits [batch, classes] -> the same shape; None: the softmax."""

    probabilities: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, logits: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        """The loss: [batch]. Raises UserError where the function gives something else."""
        found = self.function(logits, labels, **options)
        if found.shape != labels.shape[:1]:
            raise UserError(
                f"the loss {self.function.__name__} gives {list(found.shape)} for a batch of {len(labels)}: allowed is "
                f"one number for each example, [{len(labels)}], whose mean the step takes"
            )
        return found


def register_loss(
    name: str,
    *,
    labels: Literal["images", "pixels"] = "images",
    probabilities: Callable[[jax.Array], jax.Array] | None = None,
    **ranges: Range,
) -> Callable[[Made], Made]:
    """Makes a function (logits, labels, ...) -> [batch] a loss of that name: a decorator.

    It is called with `class_weights` (one number per class, or None) and `label_smoothing`, if it takes them by name,
    and with `config.loss.options`, pairs of another parameter of it and a value.
    labels: 'images': logits [batch, classes] and labels [batch]; 'pixels': both with height and width before classes.
    probabilities: see OwnLoss; ranges: the least and the greatest value of an option.
    Raises UserError for a name that another loss of such labels has.
    """

    def register(function: Made) -> Made:
        own = OwnLoss(function, ranges, probabilities)
        (MASK_LOSSES if labels == "pixels" else LOSSES).add(name, own, function)
        return function

    return register


def _registered(own: OwnLoss, loss_config: Any, class_weights: Weights) -> LossFunction:
    shared = {"class_weights": class_weights, "label_smoothing": float(loss_config.label_smoothing)}
    for key, value in shared.items():
        if value and key not in own.options:
            raise UserError(f"loss.{key} is set, and {loss_config.name} does not take it: leave it out")
    first_two = dict.fromkeys(list(own.options)[:2])
    keywords = own.keywords("loss", loss_config.options, shared | first_two)
    return functools.partial(own, **{key: value for key, value in keywords.items() if key not in first_two})


def loss_function(
    loss_config: Any, class_weights: Weights, losses: Mapping[str, Callable[..., jax.Array]] = LOSSES
) -> LossFunction:
    """The loss of a config section: (logits, labels) -> [batch].

    The result is hashable and can be a static argument of jit; two results are equal only if they are the same object,
    so make it once. loss_config: name, label_smoothing and, where the loss has it, focal_gamma, tversky_beta;
    class_weights: what the function of that name returned; losses: LOSSES or MASK_LOSSES.
    """
    name = loss_config.name
    if isinstance(own := losses[name], OwnLoss):
        return _registered(own, loss_config, class_weights)
    options: dict[str, Any] = {"class_weights": class_weights}
    if name in SMOOTHED:
        options["label_smoothing"] = float(loss_config.label_smoothing)
    if name == "focal":
        options["gamma"] = float(loss_config.focal_gamma)
    if name == "tversky":
        options["beta"] = float(loss_config.tversky_beta)
    return functools.partial(losses[name], **options)
