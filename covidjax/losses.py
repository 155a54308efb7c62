"""Losses of labelled images, of masks and of findings per example, and the probabilities that go with each loss.

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


def findings_cross_entropy(logits: jax.Array, findings: jax.Array, *, class_weights: Weights = None) -> jax.Array:
    """Binary cross-entropy of one sigmoid per finding, summed over the known ones, by the number of findings.

    So each known label of a batch weighs the same, and an unknown one has no gradient, whatever its logit.
    logits: [batch, findings] float; findings: [batch, findings] int, 1 present, 0 absent, below 0 not known;
    class_weights: the weight of the present label of each finding (`pos_weight` of PyTorch); of the absent it is 1.
    Returns [batch], float32 for half-precision logits, else the dtype of the logits.
    """
    return findings_focal(logits, findings, gamma=0.0, class_weights=class_weights)


def findings_focal(
    logits: jax.Array, findings: jax.Array, *, gamma: float = 2.0, class_weights: Weights = None
) -> jax.Array:
    """`findings_cross_entropy`, each label times (1 - p)^gamma, p the probability of what it is (Lin et al. 2017)."""
    logits = at_least_float32(logits)
    right = jnp.where(findings == 1, logits, -logits)  # log_sigmoid of it is the log of p
    return _of_known(-jnp.exp(gamma * jax.nn.log_sigmoid(-right)) * jax.nn.log_sigmoid(right), findings, class_weights)


def asymmetric(
    logits: jax.Array,
    findings: jax.Array,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
    class_weights: Weights = None,
) -> jax.Array:
    """`findings_cross_entropy` with absent labels less and less heeded (Ridnik et al. 2021, arXiv 2009.14119, eq. 4-7).

    Of a probability p a present label costs -(1 - p)^gamma_positive log p, and an absent one -q^gamma_negative
    log(1 - q) with q = max(p - margin, 0), so that nothing is learnt of it where p is below the margin.
    """
    logits = at_least_float32(logits)
    present = -jnp.exp(gamma_positive * jax.nn.log_sigmoid(-logits)) * jax.nn.log_sigmoid(logits)
    heeded = jax.nn.sigmoid(logits) > margin
    safe = jnp.where(heeded, jax.nn.sigmoid(logits) - margin, 0.5)  # 0^gamma has no derivative for gamma below 1
    rest = jnp.log(jax.nn.sigmoid(-logits) + margin) if margin else jax.nn.log_sigmoid(-logits)
    absent = jnp.where(heeded, -(safe**gamma_negative) * rest, 0.0)
    return _of_known(jnp.where(findings == 1, present, absent), findings, class_weights)


def _of_known(losses: jax.Array, findings: jax.Array, class_weights: Weights) -> jax.Array:
    """Losses [batch, findings] -> [batch], as `findings_cross_entropy` sums them."""
    if class_weights is not None:
        losses = jnp.where(findings == 1, jnp.asarray(class_weights, losses.dtype), 1) * losses
    return jnp.sum(losses, axis=-1, where=findings >= 0) / findings.shape[-1]


def known_share(logits: jax.Array, findings: jax.Array) -> jax.Array:
    """Of the known findings the part that lies on the right side of 0: [batch] float32, 0 where none is known."""
    known = findings >= 0
    right = jnp.sum((logits > 0) == (findings == 1), axis=-1, where=known, dtype=jnp.float32)
    return right / jnp.maximum(jnp.sum(known, axis=-1), 1)


# Losses of several findings by `config.loss.name`.
FINDING_LOSSES: Registry[Callable[..., jax.Array]] = Registry(
    "loss",
    {
        "findings_cross_entropy": OwnLoss(findings_cross_entropy, {}),
        "findings_focal": OwnLoss(findings_focal, {"gamma": (0, 10)}),
        "asymmetric": OwnLoss(asymmetric, {"gamma_positive": (0, 10), "gamma_negative": (0, 10), "margin": (0, 0.5)}),
    },
)


def register_loss(
    name: str,
    *,
    labels: Literal["images", "pixels", "findings"] = "images",
    probabilities: Callable[[jax.Array], jax.Array] | None = None,
    **ranges: Range,
) -> Callable[[Made], Made]:
    """Makes a function (logits, labels, ...) -> [batch] a loss of that name: a decorator.

    It is called with `class_weights` (one number per class, or None) and `label_smoothing`, if it takes them by name,
    and with `config.loss.options`, pairs of another parameter of it and a value.
    labels: 'images': logits [batch, classes] and labels [batch]; 'pixels': both with height and width before classes;
    'findings': logits and labels [batch, findings], 1, 0 or below 0 where nothing is known.
    probabilities: see OwnLoss; ranges: the least and the greatest value of an option.
    Raises UserError for a name that another loss of such labels has.
    """

    def register(function: Made) -> Made:
        own = OwnLoss(function, ranges, probabilities)
        {"images": LOSSES, "pixels": MASK_LOSSES, "findings": FINDING_LOSSES}[labels].add(name, own, function)
        return function

    return register


def _registered(own: OwnLoss, loss_config: Any, class_weights: Weights) -> LossFunction:
    shared = {"class_weights": class_weights, "label_smoothing": float(loss_config.label_smoothing)}
    for key, value in shared.items():
        if key not in own.options and value:
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
