"""Training BatchNorm and its own gradient, of XLA and of the shim, against JAX's of the same formula in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covidjax import ops
from covidjax.ops.choose import choose
from covidjax.ops.native import batch_norm as in_shim
from tests.ops.test_contract import temporary_of_a_layer
from tests.ops.test_native import calls_of

EPSILON = 1e-3
CHOICE = choose("auto")
needs_native = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)


def written_out(inputs: jax.Array, scale: jax.Array, bias: jax.Array, *terms: jax.Array) -> jax.Array:
    axes = tuple(range(inputs.ndim - 1))
    centred = inputs - jnp.mean(inputs, axes)
    normalised = centred / jnp.sqrt(jnp.mean(jnp.square(centred), axes) + EPSILON) * scale + bias
    return normalised + sum(terms)


def ours(inputs: Any, scale: Any, bias: Any, *terms: Any, **options: Any) -> jax.Array:
    residual = terms[0] if terms else None
    return ops.batch_norm(inputs, scale, bias, near(inputs), EPSILON, residual=residual, **options)[0]


def near(inputs: jax.Array) -> jax.Array:
    """A shift as a running mean gives it: a spread away from the mean of the batch."""
    wide, axes = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)), tuple(range(inputs.ndim - 1))
    return jnp.mean(wide, axes) + jnp.std(wide, axes)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def arrays(shape: tuple[int, ...], mean: float = 0.0, spread: float = 1.0, added: bool = False) -> list[np.ndarray]:
    """Inputs, scale, bias and, where one is added, a residual, in float64."""
    features, terms = shape[-1:], [draw(*shape, seed=3)] if added else []
    return [mean + spread * draw(*shape), draw(*features, seed=1), draw(*features, seed=2), *terms]


def value_and_gradients(function: Any, given: list[np.ndarray], dtype: Any, cotangent: Any = None) -> list[np.ndarray]:
    """In float64. Parameters are at least float32, as in a network."""
    wide = jnp.promote_types(dtype, jnp.float32)
    typed = [jnp.asarray(array, wide if array.ndim == 1 else dtype) for array in given]
    cotangent = jnp.asarray(draw(*given[0].shape, seed=9) if cotangent is None else cotangent, dtype)

    @jax.jit
    def run(cotangent: jax.Array, *given: jax.Array) -> tuple[jax.Array, ...]:
        outputs, pullback = jax.vjp(function, *given)
        return outputs, *pullback(cotangent)

    found = run(cotangent, *typed)
    assert [array.dtype for array in found] == [dtype, *(array.dtype for array in typed)]
    return [np.asarray(array, np.float64) for array in found]


def exact(given: list[np.ndarray], dtype: Any, cotangent: Any = None, function: Any = written_out) -> list[np.ndarray]:
    """In float64, of maps that are rounded as those of `dtype`."""
    cotangent = draw(*given[0].shape, seed=9) if cotangent is None else cotangent
    with jax.enable_x64(True):
        *maps, cotangent = (
            np.asarray(jnp.asarray(array, dtype), np.float64) if array.ndim > 1 else array
            for array in (*given, cotangent)
        )
        return value_and_gradients(function, maps, jnp.float64, cotangent)


@pytest.mark.parametrize("shape", [(4, 5, 7, 3), (16, 2), (2, 1, 1, 4)])
def test_batch_norm_equals_the_formula_in_float64(shape: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        found = value_and_gradients(ours, arrays(shape), jnp.float64)
    for one, other in zip(found, exact(arrays(shape), jnp.float64), strict=True):
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
    inputs, scale, bias = (jnp.asarray(array, jnp.float32) for array in arrays((6, 5, 5, 3), 2.0, 3.0))
    _, *statistics = ops.batch_norm(inputs, scale, bias, near(inputs), EPSILON)
    wide = np.asarray(inputs, np.float64)
    np.testing.assert_allclose(statistics, (wide.mean((0, 1, 2)), wide.var((0, 1, 2))), rtol=1e-6)

    @jax.jit
    @jax.grad
    def summed(inputs: jax.Array) -> jax.Array:
        _, mean, variance = ops.batch_norm(inputs, scale, bias, near(inputs), EPSILON)
        return jnp.sum(mean) + jnp.sum(variance)

    assert not np.any(summed(inputs))


def test_batch_over_a_mapped_axis_is_one_batch() -> None:
    given = arrays((8, 3, 5, 4), 1.0)

    def parted(inputs: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        def part(inputs: jax.Array) -> jax.Array:
            return ops.batch_norm(inputs, scale, bias, jnp.full(4, 0.7), EPSILON, "data")[0]

        return jax.vmap(part, axis_name="data")(inputs.reshape(4, 2, *inputs.shape[1:])).reshape(inputs.shape)

    with jax.enable_x64(True):
        found = value_and_gradients(parted, given, jnp.float64)
    for one, other in zip(found, exact(given, jnp.float64), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_backward_pass_keeps_the_inputs_and_no_second_array_of_their_size() -> None:
    inputs, scale, bias = (jnp.asarray(array, jnp.float32) for array in arrays((8, 32, 32, 16)))
    assert temporary_of_a_layer(lambda x, scale: jnp.sin(ours(x, scale, bias)), inputs, scale) < 1.1 * inputs.nbytes


# ---- In the shim ----


@needs_native
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    features=st.sampled_from([16, 48, 64, 512]),
    mean=st.sampled_from([0.0, 3.0]),
    added=st.booleans(),
    relu=st.booleans(),
)
def test_values_and_gradients_of_the_shim_are_those_of_float64(
    sizes: list[int], features: int, mean: float, added: bool, relu: bool
) -> None:
    own = arrays((*sizes, features), mean, added=added)
    # Rounding may put what is near zero on either side of it: that has no cotangent.
    cotangent = np.where(np.abs(exact(own, jnp.float32)[0]) < 1e-3, 0, draw(*sizes, features, seed=9))
    of_formula = (lambda *given: jax.nn.relu(written_out(*given))) if relu else written_out
    expected = exact(own, jnp.float32, cotangent, of_formula)
    expected = [np.where(np.abs(leaf) < 1e-12, 0, leaf) for leaf in expected]  # of one pixel nothing is left
    found = value_and_gradients(partial(ours, relu=relu, native=True), own, jnp.float32, cotangent)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * max(np.abs(other).max(), 1e-30)


@needs_native
def test_the_variance_of_the_shim_is_that_of_the_centred_values() -> None:
    inputs = (1000 + draw(64, 64, 16)).astype(np.float32)
    ones, zeros = jnp.ones(16), jnp.zeros(16)
    _, mean, variance = ops.batch_norm(jnp.asarray(inputs), ones, zeros, zeros, EPSILON, native=True)
    wide = inputs.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 1)), rtol=1e-4)  # of E[x^2] - E[x]^2 nothing is left


@needs_native
def test_what_is_no_number_stays_none() -> None:
    inputs, scale, bias = (jnp.asarray(array, jnp.float32) for array in arrays((4, 5, 32)))
    outputs = ours(inputs.at[1, 2, 3].set(jnp.nan), scale, bias, relu=True, native=True)
    assert np.isnan(outputs[..., 3]).all() and not np.isnan(np.delete(outputs, 3, axis=-1)).any()


@needs_native
def test_the_same_bits_again_and_one_call_each_way_and_other_features_and_types_are_xlas() -> None:
    def run(cotangent: jax.Array, *given: jax.Array) -> Any:
        outputs, pullback = jax.vjp(partial(ours, relu=True, native=True), *given)
        return outputs, pullback(cotangent)

    def typed(shape: tuple[int, ...], dtype: Any = jnp.float32) -> list[jax.Array]:
        return [jnp.asarray(each, dtype) for each in (draw(*shape, seed=9), *arrays(shape, added=True))]

    own = typed((9, 33, 31, 64))
    first, second = (jax.jit(run)(*own) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert calls_of(run, *own) == ["batch_norm", "batch_norm_gradient"]
    assert calls_of(run, *typed((2, 3, 20))) == calls_of(run, *typed((2, 3, 16), jnp.bfloat16)) == []


@needs_native
def test_arrays_that_do_not_fit_the_shim_are_an_error() -> None:
    inputs, scale, bias = (jnp.asarray(array, jnp.float32) for array in arrays((4, 5, 32)))
    few = inputs[..., :20], scale[:20], bias[:20]
    for own, message in (
        ((inputs, scale, bias[:16]), r"native batch normalisation of .*4, 5, 32.*: an array"),
        (few, "multiples of 16 features"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            jax.block_until_ready(in_shim.batch_norm(*own, None, epsilon=EPSILON, relu=False))


# ---- Its parts ----


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1e4, 1.0), (1e3, 0.1), (-1e3, 0.1), (5.0, 5e-4), (3.0, 1.0)])
def test_statistics_by_a_shift_near_the_mean_do_not_cancel_and_are_float32(
    mean: float, spread: float, dtype: Any
) -> None:
    inputs = jnp.asarray(mean + spread * draw(8, 5, 7, 4), dtype)
    exact = np.asarray(inputs, np.float64)
    shift = np.float32(mean + spread)
    found_mean, found_variance = ops.batch_statistics(inputs, jnp.full(4, shift))
    assert found_mean.dtype == found_variance.dtype == jnp.float32
    np.testing.assert_allclose(found_mean, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6 * spread)
    # The mean of the squares less the square of the mean would be wrong by 1e8 * 1e-7 = 10 at a mean of 1e4 spreads.
    np.testing.assert_allclose(
        found_variance, exact.var((0, 1, 2)), rtol=2e-6, atol=4e-6 * np.max((exact.mean((0, 1, 2)) - shift) ** 2)
    )


def test_from_a_running_mean_of_zero_statistics_become_exact_and_the_variance_is_never_too_small() -> None:
    inputs = (1e4 + draw(64, 25, 4)).astype(np.float32)
    exact_mean, exact_variance = inputs.mean((0, 1), np.float64), inputs.var((0, 1), np.float64)
    running, ratios = jnp.zeros(4), []
    for _ in range(60):
        mean, variance = ops.batch_statistics(jnp.asarray(inputs), running)
        np.testing.assert_allclose(mean, exact_mean, rtol=3e-7)
        running = 0.9 * running + 0.1 * mean
        ratios.append(variance / exact_variance)
    assert np.min(ratios) > 0.6 and np.max(ratios) < 200
    np.testing.assert_allclose(ratios[-1], 1, rtol=1e-3)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1e3, 1.0), (1e3, 0.01), (-5.0, 0.1)])
def test_normalise_is_exact_up_to_the_rounding_of_the_mean(mean: float, spread: float) -> None:
    inputs = (mean + spread * draw(8, 5, 7, 4)).astype(np.float32)
    scale, bias, center = (draw(4, seed=seed).astype(np.float32) for seed in (1, 2, 3))
    center, variance = (mean + 0.1 * spread * center).astype(np.float32), np.full(4, spread**2, np.float32)
    exact = inputs.astype(np.float64) - center
    exact = exact / np.sqrt(variance.astype(np.float64) + 1e-5) * scale + bias
    given = [jnp.asarray(each) for each in (inputs, scale, bias, center, variance)]
    # One multiply-add: the terms are as large as the mean in units of the spread, and so is their rounding.
    unit = np.finfo(np.float32).eps * (4 + abs(mean) / np.sqrt(spread**2 + 1e-5))
    np.testing.assert_allclose(ops.normalise(*given, epsilon=1e-5), exact, rtol=1e-5, atol=3 * unit * abs(scale).max())
    assert ops.normalise(given[0].astype(jnp.bfloat16), *given[1:], epsilon=1e-5).dtype == jnp.bfloat16
