import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import losses
from covidjax.errors import UserError

LOSS_FUNCTIONS = (losses.softmax_cross_entropy, losses.sigmoid_cross_entropy)
WEIGHTS = (0.5, 2.0, 1.25)
EXTREMES = (1e37, -1e37, 1e4, -1e4, 0.0)


def make_batch(dtype: Any = np.float32) -> tuple[jax.Array, jax.Array]:
    generator = np.random.default_rng(0)
    logits = 4 * generator.normal(size=(16, 3))
    return jnp.asarray(logits.astype(dtype)), jnp.asarray(generator.integers(0, 3, size=16), jnp.int32)


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
    smoothed = 0.9 * softmax + 0.1 * (softmax + softmax - 3.0) / 2
    assert losses.softmax_cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(smoothed)
    smoothed = (math.log1p(math.exp(2.0)) - 0.05 * 2.0 + math.log1p(math.exp(-1.0)) + 0.95 * 1.0) / 2
    assert losses.sigmoid_cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(smoothed)


@pytest.mark.parametrize("loss", LOSS_FUNCTIONS)
def test_class_weight_is_that_of_the_label(loss: Any) -> None:
    logits, labels = make_batch()
    weighted = loss(logits, labels, class_weights=WEIGHTS)
    np.testing.assert_allclose(weighted, loss(logits, labels) * np.asarray(WEIGHTS)[np.asarray(labels)], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSS_FUNCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_extreme_logits_give_finite_losses_and_gradients(loss: Any, label_smoothing: float) -> None:
    rows = [(first, second, 0.0) for first in EXTREMES for second in EXTREMES]
    logits = jnp.asarray(rows, jnp.float32)
    for label in range(3):
        labels = jnp.full(len(rows), label)
        values = loss(logits, labels, label_smoothing=label_smoothing)
        gradients = jax.grad(lambda x, y: jnp.sum(loss(x, y, label_smoothing=label_smoothing)))(logits, labels)
        assert np.isfinite(values).all()
        assert (np.asarray(values) >= 0).all()
        assert np.isfinite(gradients).all()
        assert np.abs(gradients).max() > 0


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


@pytest.mark.parametrize("loss", LOSS_FUNCTIONS)
def test_half_precision_logits_are_computed_in_float32(loss: Any) -> None:
    logits, labels = make_batch()
    half = logits.astype(jnp.bfloat16)
    values = loss(half, labels)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, loss(half.astype(jnp.float32), labels))
    assert losses.probabilities(half, loss.__name__).dtype == jnp.float32


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


def test_balanced_weights_average_to_one_over_the_examples() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = losses.class_weights("balanced", labels, "abc")
    assert weights == pytest.approx((10 / 18, 10 / 9, 10 / 3))
    assert np.asarray(weights)[labels].mean() == pytest.approx(1.0)


def test_balanced_weights_equal_scikit_learn() -> None:
    module = pytest.importorskip("sklearn.utils.class_weight", reason="scikit-learn is not installed: no parity check")
    labels = np.random.default_rng(3).choice(4, size=101, p=(0.6, 0.2, 0.15, 0.05))
    expected = module.compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert losses.class_weights("balanced", labels, "abcd") == pytest.approx(tuple(expected))


def test_given_weights_and_none_are_passed_on() -> None:
    labels = np.array([0, 1])
    assert losses.class_weights("none", labels, "ab") is None
    assert losses.class_weights((1, 2.5), labels, "ab") == (1.0, 2.5)


def test_weights_of_named_classes_find_their_labels() -> None:
    labels = np.array([0, 1, 2])
    for classes in ("abc", "cab", "bca"):
        weights = losses.class_weights((("c", 12), ("a", 0.5)), labels, classes)
        assert weights is not None
        assert dict(zip(classes, weights, strict=True)) == {"a": 0.5, "b": 1.0, "c": 12.0}


NUMBERS = ((1.0, 2.0), (1.0, 2.0, -1.0), (1.0, 2.0, math.nan), (0, 0, 0))
PAIRS = ((("d", 1.0),), (("a", 1.0), ("a", 2.0)), (1.0, 2.0, ("c", 3.0)), (("a", -1.0),))


@pytest.mark.parametrize("spec", ["auto", "balanced", *NUMBERS, *PAIRS])
def test_bad_class_weights_are_refused_in_one_line(spec: Any) -> None:
    with pytest.raises(UserError, match=r"^loss\.class_weights is ") as caught:
        losses.class_weights(spec, np.array([0, 0, 2]), "abc")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_loss_function_is_a_static_argument_of_jit(name: str) -> None:
    logits, labels = make_batch()
    loss = losses.loss_function(ConfigDict({"name": name, "label_smoothing": 0.1}), WEIGHTS)
    compiled = jax.jit(lambda loss, logits, labels: loss(logits, labels), static_argnums=0)
    expected = getattr(losses, name)(logits, labels, class_weights=WEIGHTS, label_smoothing=0.1)
    np.testing.assert_allclose(compiled(loss, logits, labels), expected, rtol=1e-5)
