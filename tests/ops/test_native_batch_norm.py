"""Batch normalisation in the shim: values, gradients, what follows it, and where it is not taken."""

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
from tests.ops.test_native import assert_close, calls_of, normal

CHOICE = choose("auto")
pytestmark = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)
EPSILON = 1e-3


def arrays(shape: tuple[int, ...], added: bool, mean: float = 0.0) -> list[np.ndarray]:
    features = shape[-1:]
    terms = [normal(*shape, seed=3)] if added else []
    return [normal(*shape) + np.float32(mean), normal(*features, seed=1), normal(*features, seed=2), *terms]


def normalised(*arrays: Any, relu: bool, native: bool) -> Any:
    inputs, scale, bias, *terms = arrays
    residual = terms[0] if terms else None
    return ops.batch_norm(inputs, scale, bias, EPSILON, residual=residual, relu=relu, native=native)


def with_gradients(cotangent: np.ndarray, *arrays: Any, relu: bool, native: bool) -> Any:
    """Outputs, statistics, gradients."""
    function = partial(normalised, relu=relu, native=native)
    (outputs, *statistics), pullback = jax.vjp(function, *arrays)
    cotangents = jnp.asarray(cotangent, outputs.dtype), *map(jnp.zeros_like, statistics)
    return outputs, statistics, pullback(cotangents)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    features=st.sampled_from([16, 48, 64, 512]),
    mean=st.sampled_from([0.0, 3.0]),
    added=st.booleans(),
    relu=st.booleans(),
)
def test_values_and_gradients_are_those_of_float64(
    sizes: list[int], features: int, mean: float, added: bool, relu: bool
) -> None:
    own = arrays((*sizes, features), added, mean)
    with jax.enable_x64(True):
        wide = [jnp.asarray(each, jnp.float64) for each in own]
        # Rounding may put what is near zero on either side of it: that has no cotangent.
        before, *_ = jax.jit(partial(normalised, relu=False, native=False))(*wide)
        cotangent = np.where(np.abs(before) < 1e-3, 0, normal(*before.shape, seed=9))
        expected = jax.device_get(jax.jit(partial(with_gradients, relu=relu, native=False))(cotangent, *wide))
    exact = jax.tree.map(lambda leaf: np.where(np.abs(leaf) < 1e-12, 0, leaf), expected)  # of one pixel nothing is left
    assert_close(jax.jit(partial(with_gradients, relu=relu, native=True))(cotangent, *own), exact)


def test_the_variance_is_that_of_the_centred_values() -> None:
    inputs = normal(64, 64, 16) + np.float32(1000)
    _, mean, variance = ops.batch_norm(jnp.asarray(inputs), jnp.ones(16), jnp.zeros(16), EPSILON, native=True)
    wide = inputs.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 1)), rtol=1e-4)  # of E[x^2] - E[x]^2 nothing is left


def test_what_is_no_number_stays_none() -> None:
    inputs, scale, bias = arrays((4, 5, 32), added=False)
    inputs[1, 2, 3] = np.nan
    outputs, *_ = normalised(*map(jnp.asarray, (inputs, scale, bias)), relu=True, native=True)
    assert np.isnan(outputs[..., 3]).all() and not np.isnan(np.delete(outputs, 3, axis=-1)).any()


def test_the_same_bits_again_and_one_call_each_way() -> None:
    own = [jnp.asarray(each) for each in arrays((9, 33, 31, 64), added=True)]
    run = jax.jit(partial(with_gradients, normal(9, 33, 31, 64, seed=9), relu=True, native=True))
    first, second = (jax.device_get(run(*own)) for _ in range(2))
    assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    assert calls_of(run, *own) == ["batch_norm", "batch_norm_gradient"]


def test_other_features_and_types_are_xlas() -> None:
    run = partial(normalised, relu=True, native=True)
    assert calls_of(run, *map(jnp.asarray, arrays((2, 3, 20), added=False))) == []
    assert calls_of(run, *(jnp.asarray(each, jnp.bfloat16) for each in arrays((2, 3, 16), added=False))) == []


def test_arrays_that_do_not_fit_are_an_error() -> None:
    inputs, scale, bias = map(jnp.asarray, arrays((4, 5, 32), added=False))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"native batch normalisation of .*4, 5, 32.*: an array"):
        jax.block_until_ready(in_shim.batch_norm(inputs, scale, bias[:16], None, epsilon=EPSILON, relu=False))
    with pytest.raises(jax.errors.JaxRuntimeError, match="multiples of 16 features"):
        few = inputs[..., :20], scale[:20], bias[:20], None
        jax.block_until_ready(in_shim.batch_norm(*few, epsilon=EPSILON, relu=False))
