"""Training BatchNorm and its own gradient against JAX's of the same formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covidjax import ops

EPSILON = 1e-3
Arrays = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def written_out(inputs: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    axes = tuple(range(inputs.ndim - 1))
    centred = inputs - jnp.mean(inputs, axes)
    return centred / jnp.sqrt(jnp.mean(jnp.square(centred), axes) + EPSILON) * scale + bias


def ours(inputs: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return ops.batch_norm(inputs, scale, bias, EPSILON)[0]


def arrays(shape: tuple[int, ...], mean: float = 0.0, spread: float = 1.0) -> Arrays:
    """Inputs, scale, bias and cotangent, in float64."""
    random = np.random.default_rng(0)
    inputs, cotangent = mean + spread * random.normal(size=shape), random.normal(size=shape)
    scale, bias = random.normal(size=(2, shape[-1]))
    return inputs, scale, bias, cotangent  # type: ignore[return-value]


def value_and_gradients(function: Any, given: Arrays, dtype: Any) -> list[np.ndarray]:
    """Parameters are at least float32, as in a network."""
    inputs, scale, bias, cotangent = given
    wide = jnp.promote_types(dtype, jnp.float32)
    inputs, cotangent = jnp.asarray(inputs, dtype), jnp.asarray(cotangent, dtype)

    @jax.jit
    def run(inputs: jax.Array, scale: jax.Array, bias: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        outputs, pullback = jax.vjp(function, inputs, scale, bias)
        return outputs, *pullback(cotangent)

    found = run(inputs, jnp.asarray(scale, wide), jnp.asarray(bias, wide), cotangent)
    assert [array.dtype for array in found] == [dtype, dtype, wide, wide]
    return [np.asarray(array, np.float64) for array in found]


def exact(given: Arrays, dtype: Any) -> list[np.ndarray]:
    """In float64, of inputs that are rounded as those of `dtype`."""
    inputs, scale, bias, cotangent = given
    with jax.enable_x64(True):
        inputs, cotangent = (jnp.asarray(array, dtype).astype(jnp.float64) for array in (inputs, cotangent))
        return value_and_gradients(written_out, (inputs, scale, bias, cotangent), jnp.float64)


@pytest.mark.parametrize("shape", [(4, 5, 7, 3), (16, 2), (2, 1, 1, 4)])
def test_batch_norm_equals_the_formula_in_float64(shape: tuple[int, ...]) -> None:
    given = arrays(shape)
    with jax.enable_x64(True):
        found = value_and_gradients(ours, given, jnp.float64)
    for one, other in zip(found, exact(given, jnp.float64), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (3.0, 0.5), (-100.0, 1.0), (1e3, 1.0), (1e3, 0.1)])
def test_gradients_are_exact_up_to_the_rounding_of_the_mean(mean: float, spread: float) -> None:
    given = arrays((8, 9, 7, 4), mean, spread)
    unit = np.finfo(np.float32).eps * (4 + abs(mean) / spread)  # of the normalised values
    for one, other in zip(value_and_gradients(ours, given, jnp.float32), exact(given, jnp.float32), strict=True):
        assert np.abs(one - other).max() < 8 * unit * np.abs(other).max()


def test_half_precision_is_rounded_once() -> None:
    given = arrays((8, 9, 7, 4), 1.0, 2.0)
    found, expected = value_and_gradients(ours, given, jnp.bfloat16), exact(given, jnp.bfloat16)
    for one, other, tolerance in zip(found, expected, (2**-6, 2**-8, 1e-5, 1e-5), strict=True):
        # The outputs are one multiply-add in bfloat16, of a factor and an offset that are rounded as well.
        assert np.abs(one - other).max() < tolerance * np.abs(other).max()


def test_statistics_come_with_the_outputs_and_carry_no_gradient() -> None:
    inputs, scale, bias, _ = (jnp.asarray(array, jnp.float32) for array in arrays((6, 5, 5, 3), 2.0, 3.0))
    _, mean, variance = ops.batch_norm(inputs, scale, bias, EPSILON)
    np.testing.assert_allclose(mean, np.mean(np.asarray(inputs, np.float64), (0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, np.var(np.asarray(inputs, np.float64), (0, 1, 2)), rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda inputs: sum(map(jnp.sum, ops.batch_norm(inputs, scale, bias, EPSILON)[1:]))))(
        inputs
    )
    assert not np.any(gradient)


def test_batch_over_a_mapped_axis_is_one_batch() -> None:
    given = arrays((8, 3, 5, 4), 1.0)

    def parted(inputs: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        def part(inputs: jax.Array) -> jax.Array:
            return ops.batch_norm(inputs, scale, bias, EPSILON, "data")[0]

        return jax.vmap(part, axis_name="data")(inputs.reshape(4, 2, *inputs.shape[1:])).reshape(inputs.shape)

    with jax.enable_x64(True):
        found = value_and_gradients(parted, given, jnp.float64)
    for one, other in zip(found, exact(given, jnp.float64), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_batch_norm_passes_through_transformations() -> None:
    inputs, scale, bias, cotangent = (jnp.asarray(array, jnp.float32) for array in arrays((3, 4, 5, 5, 2)))
    parts = [
        value_and_gradients(written_out, (one, scale, bias, g), jnp.float32)
        for one, g in zip(inputs, cotangent, strict=True)
    ]
    expected = [np.stack(arrays) for arrays in zip(*parts, strict=True)]

    def mapped(inputs: jax.Array, scale: jax.Array, bias: jax.Array, cotangent: jax.Array) -> Any:
        outputs, pullback = jax.vjp(jax.checkpoint(ours), inputs, scale, bias)
        return outputs, *pullback(cotangent)

    found = jax.jit(jax.vmap(mapped, in_axes=(0, None, None, 0)))(inputs, scale, bias, cotangent)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)

    def scanned(inputs: jax.Array) -> jax.Array:
        return lax.scan(lambda _, part: (None, ours(part, scale, bias)), None, inputs)[1]

    found = jax.jit(lambda inputs, cotangent: jax.vjp(scanned, inputs)[1](cotangent)[0])(inputs, cotangent)
    np.testing.assert_allclose(found, expected[1], atol=1e-5)


def test_backward_pass_keeps_the_inputs_and_no_second_array_of_their_size() -> None:
    inputs, scale, bias, _ = (jnp.asarray(array, jnp.float32) for array in arrays((8, 32, 32, 16)))

    def temporary(depth: int) -> int:
        def loss(inputs: jax.Array, scales: list[jax.Array]) -> jax.Array:
            for scale in scales:
                inputs = jnp.sin(ours(inputs, scale, bias))
            return jnp.sum(inputs)

        compiled = jax.jit(jax.grad(loss, 1)).lower(inputs, [scale] * depth).compile()
        found: Any = compiled.memory_analysis()
        return int(found.temp_size_in_bytes)

    assert (temporary(4) - temporary(2)) / 2 < 1.1 * inputs.nbytes


# ---- Its parts ----


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


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
