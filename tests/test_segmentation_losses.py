from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import losses
from covidjax.errors import UserError
from covidjax.losses import MASK_LOSSES

WEIGHTS = (0.5, 2.0, 1.25)
EXTREMES = (1e37, -1e37, 1e4, -1e4, 0.0)
EMPTY = np.zeros((1, 4, 4), np.int32)


def make_batch(dtype: Any = np.float32, num_classes: int = 3) -> tuple[jax.Array, jax.Array]:
    """Five images of 6 x 7 pixels; the mask of the first is empty."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_classes, (5, 6, 7), np.uint8)
    labels[0] = 0
    return jnp.asarray(2 * generator.normal(size=(5, 6, 7, num_classes)).astype(dtype)), jnp.asarray(labels)


def make(name: str, weights: tuple[float, ...] | None = None, **changes: float) -> Callable[..., jax.Array]:
    """The loss, compiled as one: in eager mode each of its operations would be."""
    return jax.jit(make_eager(name, weights, **changes))


def make_eager(name: str, weights: tuple[float, ...] | None = None, **changes: float) -> losses.LossFunction:
    section = {"name": name, "label_smoothing": 0.0, "focal_gamma": 2.0, "tversky_beta": 0.7, **changes}
    return losses.loss_function(ConfigDict(section), weights, MASK_LOSSES)


def by_numpy(name: str, logits: Any, labels: Any, weights: tuple[float, ...], gamma: float, beta: float) -> np.ndarray:
    """The formulas, pixel by pixel and class by class, in float64."""
    values = []
    for image, mask in zip(np.asarray(logits, np.float64), np.asarray(labels), strict=True):
        p = np.exp(image) / np.exp(image).sum(-1, keepdims=True)
        s = 1 / (1 + np.exp(-image))
        sums = dict.fromkeys(("cross_entropy", "sigmoid", "focal"), 0.0)
        for row, column in np.ndindex(mask.shape):
            label, pixel = mask[row, column], p[row, column]
            sums["cross_entropy"] -= weights[label] * np.log(pixel[label])
            sums["focal"] -= weights[label] * (1 - pixel[label]) ** gamma * np.log(pixel[label])
            terms = [np.log(s[row, column, c] if c == label else 1 - s[row, column, c]) for c in range(len(pixel))]
            sums["sigmoid"] -= weights[label] * np.mean(terms)
        overlaps = {}
        for half in (0.5, beta):
            parts = []
            for c in range(p.shape[-1]):
                g = mask == c
                hits, false, missed = (p[..., c] * g).sum(), (p[..., c] * ~g).sum(), ((1 - p[..., c]) * g).sum()
                parts.append(1 - (hits + 0.5) / (hits + (1 - half) * false + half * missed + 0.5))
            overlaps[half] = np.average(parts, weights=weights)
        means = {key: value / mask.size for key, value in sums.items()}
        values.append({
            "softmax_cross_entropy": means["cross_entropy"],
            "sigmoid_cross_entropy": means["sigmoid"],
            "cross_entropy_dice": means["cross_entropy"] + overlaps[0.5],
            "dice": overlaps[0.5],
            "focal": means["focal"],
            "tversky": overlaps[beta],
        }[name])  # fmt: skip
    return np.array(values)


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize(("weights", "dtype"), [(None, np.float32), (WEIGHTS, np.float64)])
def test_losses_equal_their_formulas(name: str, weights: tuple[float, ...] | None, dtype: Any) -> None:
    with jax.enable_x64(dtype == np.float64):
        logits, labels = make_batch(dtype)
        found = make(name, weights, focal_gamma=1.7, tversky_beta=0.8)(logits, labels)
        assert found.shape == (5,)
        assert found.dtype == dtype
        expected = by_numpy(name, logits, labels, weights or (1.0, 1.0, 1.0), 1.7, 0.8)
        np.testing.assert_allclose(found, expected, rtol=1e-12 if dtype == np.float64 else 2e-6)


def test_dice_by_hand() -> None:
    """Two of sixteen pixels are lesion; the network is certain of one of them and of one that is none."""
    labels, logits = EMPTY.copy(), certain(0)
    labels[0, 0, :2] = 1
    logits[0, [0, 3], [0, 3], 1] = 400.0
    lesion, background = (2 * 1 + 1) / (2 + 2 + 1), (2 * 13 + 1) / (14 + 14 + 1)
    assert make("dice")(logits, labels).item() == pytest.approx(1 - (lesion + background) / 2)
    assert make("dice", (0.0, 2.0))(logits, labels).item() == pytest.approx(1 - lesion)
    logits[0, 0, 1, 1] = 400.0  # nothing is missed now, and one pixel is false
    lesion, background = (2 * 2 + 1) / (2 * (2 + 0.1 * 1) + 1), (2 * 13 + 1) / (2 * (13 + 0.9 * 1) + 1)
    found = make("tversky", tversky_beta=0.9)(logits, labels).item()
    assert found == pytest.approx(1 - (lesion + background) / 2)


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
    logits, labels = make_batch()
    for name in ("softmax_cross_entropy", "sigmoid_cross_entropy"):
        pixels = np.asarray(getattr(losses, name)(logits, labels, class_weights=WEIGHTS, label_smoothing=0.1))
        found = make(name, WEIGHTS, label_smoothing=0.1)(logits, labels)
        np.testing.assert_allclose(found, pixels.mean(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "gamma"),
    [*((name, 2.0) for name in MASK_LOSSES), ("focal", 0.0), ("focal", 0.5), ("focal", 1.0)],
)
def test_extreme_logits_give_finite_losses_and_gradients(name: str, gamma: float) -> None:
    rows = jnp.asarray([(first, second, 0.0) for first in EXTREMES for second in EXTREMES], jnp.float32)
    loss = make(name, focal_gamma=gamma)
    compiled = jax.jit(jax.value_and_grad(lambda logits, labels: jnp.sum(loss(logits, labels))))
    for label in range(3):
        value, gradients = compiled(rows.reshape(1, 5, 5, 3), jnp.full((1, 5, 5), label))
        assert np.isfinite(value)
        assert value > 0
        assert np.isfinite(gradients).all()
        assert np.abs(gradients).max() > 0


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        logits, labels = make_batch(np.float64)
        loss = make(name, WEIGHTS, focal_gamma=0.5)
        direction = np.random.default_rng(1).normal(size=logits.shape)
        slopes = jax.jit(lambda x, d: jax.jvp(lambda x: loss(x, labels), (x,), (d,))[1])(logits, direction)
        ahead, behind = (np.asarray(loss(np.asarray(logits) + step * direction, labels)) for step in (1e-5, -1e-5))
        np.testing.assert_allclose(slopes, (ahead - behind) / 2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_half_precision_logits_are_computed_in_float32(name: str) -> None:
    logits, labels = make_batch()
    half = logits.astype(jnp.bfloat16)
    values = make(name)(half, labels)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, make(name)(half.astype(jnp.float32), labels))


def test_balanced_weights_average_to_one_over_the_pixels() -> None:
    masks = np.array([[[0, 0, 0], [0, 0, 1]], [[0, 2, 0], [0, 1, 0]]], np.uint8)
    np.testing.assert_array_equal(losses.class_counts(masks, 4), [9, 2, 1, 0])
    weights = losses.class_weights("balanced", masks, "abc")
    assert weights == pytest.approx((12 / 27, 12 / 6, 12 / 3))
    assert np.asarray(weights)[masks].mean() == pytest.approx(1.0)
    with pytest.raises(UserError, match="class d has no training pixel"):
        losses.class_weights("balanced", masks, "abcd")
