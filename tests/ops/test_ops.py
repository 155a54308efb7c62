import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import ops


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_global_average_pool_is_the_mean_over_space() -> None:
    inputs = draw(2, 5, 3, 4)
    np.testing.assert_allclose(
        ops.global_average_pool(jnp.asarray(inputs, jnp.float32)), inputs.mean((1, 2)), atol=1e-6
    )


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1e3, 1.0), (1e3, 0.01), (-1e3, 0.1), (5.0, 1e-4)])
def test_batch_statistics_do_not_cancel(mean: float, spread: float) -> None:
    inputs = (mean + spread * draw(8, 5, 7, 4)).astype(np.float32)
    exact = inputs.astype(np.float64)
    found_mean, found_variance = ops.batch_statistics(jnp.asarray(inputs))
    np.testing.assert_allclose(found_mean, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    # The mean of the squares less the square of the mean would be wrong by 1e6 * 1e-7 = 0.1 at a mean of 1e3.
    rounding_of_mean = (1e-6 * abs(mean)) ** 2
    np.testing.assert_allclose(found_variance, exact.var((0, 1, 2)), rtol=1e-4, atol=rounding_of_mean)


def test_statistics_of_half_precision_inputs_are_float32() -> None:
    inputs = jnp.asarray(3 + draw(16, 8, 8, 2), jnp.bfloat16)
    exact = np.asarray(inputs, np.float64)
    mean, variance = ops.batch_statistics(inputs)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1e3, 1.0), (1e3, 0.01), (-5.0, 0.1)])
def test_normalise_is_exact_up_to_the_rounding_of_the_mean(mean: float, spread: float) -> None:
    inputs = (mean + spread * draw(8, 5, 7, 4)).astype(np.float32)
    scale, bias, center = (draw(4, seed=seed).astype(np.float32) for seed in (1, 2, 3))
    center, variance = (mean + 0.1 * spread * center).astype(np.float32), np.full(4, spread**2, np.float32)
    exact = inputs.astype(np.float64) - center
    exact = exact / np.sqrt(variance.astype(np.float64) + 1e-5) * scale + bias
    found = ops.normalise(*map(jnp.asarray, (inputs, scale, bias, center, variance)), epsilon=1e-5)
    # One multiply-add: the terms are as large as the mean in units of the spread, and so is their rounding.
    unit = np.finfo(np.float32).eps * (4 + abs(mean) / np.sqrt(spread**2 + 1e-5))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=3 * unit * abs(scale).max())


def test_normalise_keeps_the_dtype_of_its_inputs() -> None:
    factors = [jnp.ones(3) for _ in range(4)]
    assert ops.normalise(jnp.ones((2, 3), jnp.bfloat16), *factors, epsilon=1e-5).dtype == jnp.bfloat16
