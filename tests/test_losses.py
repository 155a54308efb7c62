"""Losses of labels and of masks: their formulas, their limits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import losses
from covidjax.losses import MASK_LOSSES

LOSS_FUNCTIONS = (losses.softmax_cross_entropy, losses.sigmoid_cross_entropy)
WEIGHTS = (0.5, 2.0, 1.25)
EXTREMES = (1e37, -1e37, 1e4, -1e4, 0.0)
EMPTY = np.zeros((1, 4, 4), np.int32)
EVERY = [*((name, False) for name in losses.LOSSES), *((name, True) for name in MASK_LOSSES)]
every_loss = pytest.mark.parametrize(("name", "of_masks"), EVERY)


def make_batch(dtype: Any = np.float32, of_masks: bool = False) -> tuple[jax.Array, jax.Array]:
    """Sixteen labels, or the masks of five images of 6 x 7 pixels, of which the first is empty; and logits."""
    generator, shape = np.random.default_rng(0), (5, 6, 7) if of_masks else (16,)
    labels = generator.integers(0, 3, shape, np.uint8)
    labels[0] = 0
    return jnp.asarray(3 * generator.normal(size=(*shape, 3)).astype(dtype)), jnp.asarray(labels)


def make(name: str, weights: tuple[float, ...] | None = None, of_masks: bool = True, **changes: float) -> Any:
    """The loss, compiled as one: in eager mode each of its operations would be."""
    section = {"name": name, "label_smoothing": 0.0, "focal_gamma": 2.0, "tversky_beta": 0.7, **changes}
    return jax.jit(losses.loss_function(ConfigDict(section), weights, MASK_LOSSES if of_masks else losses.LOSSES))


SMOOTHED = [(name, False, {"label_smoothing": 0.1}) for name in losses.LOSSES if name in losses.SMOOTHED]
FOCAL = [("focal", masks, {"focal_gamma": gamma}) for masks in (True, False) for gamma in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize(("name", "of_masks", "changes"), [*((*each, {}) for each in EVERY), *SMOOTHED, *FOCAL])
def test_extreme_logits_give_finite_losses_and_gradients(name: str, of_masks: bool, changes: dict[str, float]) -> None:
    rows = jnp.asarray([(first, second, 0.0) for first in EXTREMES for second in EXTREMES], jnp.float32)
    rows = rows.reshape(1, 5, 5, 3) if of_masks else rows
    loss = make(name, None, of_masks, **changes)
    compiled = jax.jit(jax.value_and_grad(lambda logits, labels: jnp.sum(loss(logits, labels))))
    for label in range(3):
        value, gradients = compiled(rows, jnp.full(rows.shape[:-1], label))
        assert np.isfinite(value) and value > 0
        assert np.isfinite(gradients).all() and np.abs(gradients).max() > 0
        assert (np.asarray(loss(rows, jnp.full(rows.shape[:-1], label))) >= 0).all()


@every_loss
def test_half_precision_logits_are_computed_in_float32(name: str, of_masks: bool) -> None:
    logits, labels = make_batch(of_masks=of_masks)
    half, loss = logits.astype(jnp.bfloat16), make(name, None, of_masks)
    values = loss(half, labels)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, loss(half.astype(jnp.float32), labels))
    if not of_masks:
        assert losses.probabilities(half, name).dtype == jnp.float32


# ---- Of labels ----


@pytest.mark.parametrize("loss", LOSS_FUNCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_losses_equal_keras(
    keras: Any, loss: Any, label_smoothing: float, weights: tuple[float, ...] | None, dtype: Any
) -> None:
    # Keras' mean over the outputs, in the binary cross-entropy, is float32 whatever it is given.
    tolerance = 1e-12 if dtype == np.float64 and loss is losses.softmax_cross_entropy else 2e-6
    with jax.enable_x64(dtype == np.float64):
        logits, labels = make_batch(dtype)
        classes = {
            "softmax_cross_entropy": keras.losses.CategoricalCrossentropy,
            "sigmoid_cross_entropy": keras.losses.BinaryCrossentropy,
        }
        options = {"from_logits": True, "label_smoothing": label_smoothing, "dtype": np.dtype(dtype).name}
        targets = np.eye(3, dtype=dtype)[np.asarray(labels)]
        sample_weight = None if weights is None else np.asarray(weights, dtype)[np.asarray(labels)]
        each = classes[loss.__name__](reduction=None, **options)(targets, logits, sample_weight=sample_weight)
        mean = classes[loss.__name__](**options)(targets, logits, sample_weight=sample_weight)
        ours = loss(logits, labels, class_weights=weights, label_smoothing=label_smoothing)
        assert ours.shape == (16,)
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, each, rtol=tolerance)
        np.testing.assert_allclose(jnp.mean(ours), mean, rtol=tolerance)


def test_losses_equal_their_formulas() -> None:
    logits = jnp.array([[2.0, -1.0]])
    labels = jnp.array([1])
    softmax = -math.log(math.exp(-1.0) / (math.exp(2.0) + math.exp(-1.0)))
    sigmoid = (math.log1p(math.exp(2.0)) + math.log1p(math.exp(1.0))) / 2
    assert losses.softmax_cross_entropy(logits, labels).item() == pytest.approx(softmax)
    assert losses.sigmoid_cross_entropy(logits, labels).item() == pytest.approx(sigmoid)
    focal = (1 - math.exp(-softmax)) ** 1.7 * softmax
    assert losses.focal(logits, labels, gamma=1.7, class_weights=(3.0, 2.0)).item() == pytest.approx(2 * focal)
    smoothed = 0.9 * softmax + 0.1 * (softmax + softmax - 3.0) / 2
    assert losses.softmax_cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(smoothed)
    smoothed = (math.log1p(math.exp(2.0)) - 0.05 * 2.0 + math.log1p(math.exp(-1.0)) + 0.95 * 1.0) / 2
    assert losses.sigmoid_cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(smoothed)


def test_logit_out_of_reach_of_float32_does_not_spoil_the_right_class() -> None:
    logits = jnp.array([[3e38, -3e38]])
    assert losses.softmax_cross_entropy(logits, jnp.array([0])).item() == 0.0
    gradient = jax.grad(lambda x: losses.softmax_cross_entropy(x, jnp.array([0])).sum())(logits)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("loss", LOSS_FUNCTIONS)
def test_small_losses_keep_their_digits(loss: Any) -> None:
    values = loss(jnp.array([[20.0, -20.0]]), jnp.array([0]))
    exact = math.log1p(math.exp(-40.0 if loss is losses.softmax_cross_entropy else -20.0))
    # In the softmax 1 + exp(-40) is 1 in float32; the sigmoid keeps both of its logarithms.
    assert values.item() == pytest.approx(exact, rel=1e-5, abs=1e-16)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_probabilities_are_a_distribution_in_the_order_of_the_logits(name: str) -> None:
    logits = jnp.concatenate([make_batch()[0], jnp.array([[-200.0, -201.0, -300.0], [1e4, 0.0, -1e4]])])
    values = np.asarray(losses.probabilities(logits, name))
    np.testing.assert_allclose(values.sum(axis=1), 1.0, rtol=1e-5)
    assert (values >= 0).all()
    np.testing.assert_array_equal(values.argmax(axis=1), np.asarray(logits).argmax(axis=1))


def test_sigmoid_probabilities_are_the_sigmoids_over_their_sum() -> None:
    logits = make_batch()[0]
    sigmoids = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = sigmoids / sigmoids.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(losses.probabilities(logits, "sigmoid_cross_entropy"), expected, rtol=1e-5)


# ---- Of masks ----


def by_numpy(name: str, logits: Any, labels: Any, weights: tuple[float, ...], gamma: float, beta: float) -> np.ndarray:
    """The formulas in float64, of each image."""
    logits, one_hot = np.asarray(logits, np.float64), np.eye(3)[np.asarray(labels)]
    weight, p = np.asarray(weights)[np.asarray(labels)], np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_label, sigmoids = (p * one_hot).sum(-1), 1 / (1 + np.exp(-logits))
    cross_entropy = np.mean(-weight * np.log(of_label), axis=(1, 2))

    def overlap(missed_part: float) -> np.ndarray:
        hits, false, missed = (np.sum(part, (1, 2)) for part in (p * one_hot, p * (1 - one_hot), (1 - p) * one_hot))
        parts = 1 - (hits + 0.5) / (hits + (1 - missed_part) * false + missed_part * missed + 0.5)
        return np.average(parts, axis=-1, weights=weights)

    return {
        "softmax_cross_entropy": cross_entropy,
        "sigmoid_cross_entropy": np.mean(-weight * np.log(np.abs(1 - one_hot - sigmoids)).mean(-1), axis=(1, 2)),
        "cross_entropy_dice": cross_entropy + overlap(0.5),
        "dice": overlap(0.5),
        "focal": np.mean(-weight * (1 - of_label) ** gamma * np.log(of_label), axis=(1, 2)),
        "tversky": overlap(beta),
    }[name]


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize(("weights", "dtype"), [(None, np.float32), (WEIGHTS, np.float64)])
def test_losses_of_masks_equal_their_formulas(name: str, weights: tuple[float, ...] | None, dtype: Any) -> None:
    with jax.enable_x64(dtype == np.float64):
        logits, labels = make_batch(dtype, of_masks=True)
        found = make(name, weights, focal_gamma=1.7, tversky_beta=0.8)(logits, labels)
        assert found.shape == (5,)
        assert found.dtype == dtype
        expected = by_numpy(name, logits, labels, weights or (1.0, 1.0, 1.0), 1.7, 0.8)
        np.testing.assert_allclose(found, expected, rtol=1e-12 if dtype == np.float64 else 2e-6)


def certain(label: int) -> np.ndarray:
    """Logits of two classes that say the same of each pixel."""
    logits = np.zeros((1, 4, 4, 2), np.float32)
    logits[..., label] = 200.0
    return logits


@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_empty_mask_costs_what_is_predicted_in_it(name: str) -> None:
    loss, some = make(name), certain(0)
    assert loss(certain(0), EMPTY).item() == 0.0
    some[0, 0, :3, 1] = 400.0
    false, missed = (3, 3) if name == "dice" else (2 * 0.3 * 3, 2 * 0.7 * 3)
    assert loss(some, EMPTY).item() == pytest.approx(1 - (1 / (false + 1) + 27 / (26 + missed + 1)) / 2)
    assert loss(certain(1), EMPTY + 1).item() == 0.0


def test_label_smoothing_is_that_of_the_pixels() -> None:
    logits, labels = make_batch(of_masks=True)
    for name in ("softmax_cross_entropy", "sigmoid_cross_entropy"):
        pixels = np.asarray(getattr(losses, name)(logits, labels, class_weights=WEIGHTS, label_smoothing=0.1))
        found = make(name, WEIGHTS, label_smoothing=0.1)(logits, labels)
        np.testing.assert_allclose(found, pixels.mean(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        logits, labels = make_batch(np.float64, of_masks=True)
        loss = make(name, WEIGHTS, focal_gamma=0.5)
        direction = np.random.default_rng(1).normal(size=logits.shape)
        slopes = jax.jit(lambda x, d: jax.jvp(lambda x: loss(x, labels), (x,), (d,))[1])(logits, direction)
        ahead, behind = (np.asarray(loss(np.asarray(logits) + step * direction, labels)) for step in (1e-5, -1e-5))
        np.testing.assert_allclose(slopes, (ahead - behind) / 2e-5, rtol=1e-5)
