"""Max-pooling and its gradient against XLA's windows and their scatter."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import ops
from covidjax.ops import pooling
from tests.ops.test_contract import in_all_ways

FEATURES = {False: 3, True: 48}  # the shim has multiples of 16

NONE = ((0, 0), (0, 0))
ONE = ((1, 1), (1, 1))
WINDOWS: dict[str, dict[str, Any]] = {
    "2x2": {"window": (2, 2), "strides": (2, 2), "padding": NONE},
    "2x2 padded": {"window": (2, 2), "strides": (2, 2), "padding": ((0, 1), (0, 1))},
    "3x3": {"window": (3, 3), "strides": (2, 2), "padding": ONE},
    "uneven": {"window": (3, 2), "strides": (1, 3), "padding": ((0, 2), (1, 0))},
    "rows": {"window": (4, 1), "strides": (4, 1), "padding": NONE},
}


def draw(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Few different values, so that most windows have several maxima; all negative, so that padding must not win."""
    return jnp.asarray(np.random.default_rng(0).integers(-4, 0, shape), dtype)


CASES = [
    *((name, (7, 9), jnp.float32) for name in WINDOWS),
    ("2x2", (8, 12), jnp.bfloat16),
    ("3x3", (8, 12), jnp.float64),
    pytest.param("3x3", (4, 5), jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param("uneven", (4, 5), jnp.float64, marks=pytest.mark.slow),
]


@partial(jax.jit, static_argnums=(0, 2))
def gradients(name: str, inputs: jax.Array, native: bool) -> tuple[Any, Any, Any, Any]:
    """Value and gradient, ours and XLA's."""
    outputs, pullback = jax.vjp(lambda inputs: ops.max_pool(inputs, native=native, **WINDOWS[name]), inputs)
    expected, plain_pullback = jax.vjp(lambda inputs: pooling.plain(inputs, pooling.Windows(**WINDOWS[name])), inputs)
    cotangent = jnp.asarray(np.random.default_rng(1).integers(-8, 9, outputs.shape), inputs.dtype)  # sums are exact
    return outputs, pullback(cotangent)[0], expected, plain_pullback(cotangent)[0]


@in_all_ways
@pytest.mark.parametrize(("name", "size", "dtype"), CASES)
def test_first_of_several_maxima_takes_the_gradient(name: str, size: tuple[int, int], dtype: Any, native: bool) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        outputs, gradient, expected, expected_gradient = gradients(
            name, draw((2, *size, FEATURES[native]), dtype), native
        )
        assert outputs.dtype == gradient.dtype == dtype
        np.testing.assert_array_equal(outputs, expected)
        np.testing.assert_array_equal(gradient, expected_gradient)


@in_all_ways
@pytest.mark.parametrize("name", ["2x2", "3x3", "uneven"])
def test_infinities_pool_as_other_numbers(name: str, native: bool) -> None:
    inputs = draw((2, 8, 12, 16 if native else 2))
    inputs = jnp.where(inputs == -4, -jnp.inf, jnp.where(inputs == -1, jnp.inf, inputs)).at[0].set(-jnp.inf)
    outputs, gradient, expected, expected_gradient = gradients(name, inputs, native)
    np.testing.assert_array_equal(outputs, expected)
    inner = slice(None) if WINDOWS[name]["padding"] == NONE else slice(1, -1)  # padding is -inf as well
    np.testing.assert_array_equal(gradient[:, inner, inner], expected_gradient[:, inner, inner])


@in_all_ways
@pytest.mark.parametrize("name", ["2x2", "3x3", "uneven"])
def test_a_nan_is_the_maximum_of_its_windows(name: str, native: bool) -> None:
    features = 16 if native else 2  # of wider maps XLA's own windows drop what is no number
    inputs = draw((2, 8, 12, features)).at[0, 3, 5, 0].set(jnp.nan)
    outputs, gradient, expected, _ = gradients(name, inputs, native)
    np.testing.assert_array_equal(outputs, expected)
    assert np.isnan(outputs[..., 0]).any()
    np.testing.assert_array_equal(gradient[..., 1], gradients(name, inputs, native)[3][..., 1])
    assert np.isfinite(gradient).all()


@in_all_ways
def test_a_window_larger_than_the_map_gives_an_empty_one(native: bool) -> None:
    inputs = draw((2, 1, 3, 16))
    outputs, gradient, *_ = gradients("2x2", inputs, native)
    assert outputs.shape == (2, 0, 1, 16)
    assert not np.any(gradient)


@in_all_ways
def test_windows_are_the_librarys_on_a_gpu_and_a_tpu_and_no_gpu_scatters(native: bool) -> None:
    traced = jax.jit(lambda inputs: gradients("3x3", inputs, native)[:2]).trace(draw((2, 8, 8, 16)))
    for platform, windows, scatters in (("cuda", 1, 0), ("tpu", 1, 1), ("cpu", 0, 0)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert program.count('"stablehlo.reduce_window"') == windows
        assert program.count('"stablehlo.select_and_scatter"') == scatters


# ---- Over the whole map ----


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_maximum_of_a_map_and_its_gradient_to_the_first_place(dtype: Any) -> None:
    inputs = draw((2, 5, 4, 3), dtype)
    outputs, pullback = jax.vjp(ops.global_max_pool, inputs)
    cotangent = jnp.asarray([[1, 2, 3], [4, 5, 6]], dtype)
    expected = np.zeros((2, 20, 3))
    flat = np.asarray(inputs, np.float32).reshape(2, 20, 3)
    np.put_along_axis(expected, flat.argmax(1)[:, None], np.asarray(cotangent, np.float32)[:, None], axis=1)
    assert outputs.dtype == dtype
    np.testing.assert_array_equal(outputs, flat.max(1))
    np.testing.assert_array_equal(pullback(cotangent)[0], expected.reshape(inputs.shape))


def test_maximum_of_a_map_with_a_nan_or_an_infinity() -> None:
    inputs = draw((1, 3, 3, 3)).at[0, 1, 2, 0].set(jnp.nan).at[0, 2, 1, 1].set(-jnp.inf).at[0, 0, 0, 2].set(jnp.inf)
    np.testing.assert_array_equal(ops.global_max_pool(inputs), np.asarray(inputs).max((1, 2)))


@pytest.mark.parametrize("name", ["whole map", "3x3", pytest.param("2x2", marks=pytest.mark.slow)])
def test_gradient_of_a_maximum_is_the_same_however_xla_rounds_the_map_when_it_makes_it_again(name: str) -> None:
    """Without LLVM's optimisations a map made twice differs in its last bit: equality with the maximum is lost."""

    def pooled(maps: jax.Array) -> jax.Array:
        return ops.global_max_pool(maps) if name == "whole map" else ops.max_pool(maps, **WINDOWS[name])

    def loss(kernels: list[jax.Array], biases: list[jax.Array]) -> jax.Array:
        shortcut, maps = (jnp.asarray(inputs) @ kernel for kernel in kernels)
        residual, *_ = ops.batch_norm(shortcut, jnp.ones(64), biases[0], jnp.zeros(64), 1e-3)
        maps, *_ = ops.batch_norm(maps, jnp.ones(64), biases[1], jnp.zeros(64), 1e-3, residual=residual, relu=True)
        return jnp.sum(jnp.sin(pooled(maps)))

    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        inputs = random.normal(size=(4, 4, 4, 16))
        trained = [random.normal(size=(16, 64)) for _ in range(2)], [random.normal(size=64) for _ in range(2)]
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(*trained)
        found, expected = (
            lowered.compile(compiler_options={"xla_backend_optimization_level": level})(*trained) for level in "03"
        )
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


def test_global_average_pool_is_the_mean_over_space() -> None:
    inputs = draw((2, 5, 3, 4))
    np.testing.assert_allclose(ops.global_average_pool(inputs), np.mean(inputs, (1, 2)), atol=1e-6)
