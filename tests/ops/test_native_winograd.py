"""Winograd's formulation in the shim: values, gradients, what follows it, and where it is taken."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covidjax.ops.by_platform import Geometry
from covidjax.ops.choose import choose
from covidjax.ops.convolution import formulation_with_shim, plain
from covidjax.ops.epilogue import add_and_relu
from covidjax.ops.native.convolution import NATIVE_WINOGRAD, outputs
from tests.ops.test_native import assert_close, in_float64, normal, pairs

CHOICE = choose("auto")
pytestmark = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)


@given(
    batch=st.integers(1, 4),
    size=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    padding=st.tuples(pairs, pairs),
    stride=st.sampled_from([1, 2]),
    features=st.tuples(st.sampled_from([16, 32, 48, 80, 128]), st.sampled_from([16, 32, 48, 112, 256])),
)
def test_winograds_and_its_gradients_are_those_of_float64(
    batch: int,
    size: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    stride: int,
    features: tuple[int, int],
) -> None:
    if any(extent + sum(pair) < 3 for extent, pair in zip(size, padding, strict=True)):
        return
    geometry = Geometry((batch, *size, features[0]), (3, 3, *features), (stride, stride), padding, (1, 1))
    inputs, kernel = jnp.asarray(normal(*geometry.inputs)), jnp.asarray(normal(*geometry.kernel, seed=1))
    cotangent = jnp.asarray(normal(batch, *geometry.size, features[1], seed=9))
    values, (of_inputs, of_kernel) = in_float64(partial(plain, geometry=geometry), inputs, kernel)
    assert_close(NATIVE_WINOGRAD.outputs(inputs, kernel, geometry), values)
    assert_close(NATIVE_WINOGRAD.input_gradient(cotangent, kernel, geometry), of_inputs)
    assert_close(NATIVE_WINOGRAD.kernel_gradient(cotangent, inputs, geometry), of_kernel)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "features"), [(9, (48, 144)), (40, (48, 144)), (33, (272, 272))], ids=["few tiles", "many tiles", "parts"]
)
def test_winograds_with_what_follows(size: int, features: tuple[int, int], stride: int) -> None:
    """Few tiles go through another loop than many; both of more blocks than one; a large kernel part by part."""
    inputs_shape, strides = (3, stride * size, stride * size, features[0]), (stride, stride)
    geometry = Geometry(inputs_shape, (3, 3, *features), strides, ((1, 1), (1, 1)), (1, 1))
    shapes: list[tuple[int, ...]] = [geometry.inputs, geometry.kernel, features[1:], (3, size, size, features[1])]
    inputs, kernel, bias, residual = (jnp.asarray(normal(*shape, seed=i)) for i, shape in enumerate(shapes))
    for terms in itertools.product((None, bias), (None, residual), (False, True)):
        expected = add_and_relu(plain(inputs, kernel, geometry), *terms[:2], relu=terms[2])
        assert_close(outputs(inputs, kernel, geometry, *terms, winograd=True), expected)


def test_winograds_is_taken_where_it_is_faster() -> None:
    def taken(batch: int, size: int, features: int, taps: int = 3, strides: tuple[int, int] = (1, 1)) -> bool:
        inputs, kernel = (batch, size, size, features), (taps, taps, features, 64)
        geometry = Geometry(inputs, kernel, strides, ((1, 1), (1, 1)), (1, 1))
        return formulation_with_shim(geometry, jnp.float32) is NATIVE_WINOGRAD

    assert taken(8, 56, 64) and taken(8, 7, 512) and taken(2, 256, 32)
    assert taken(8, 56, 64, strides=(2, 2)) and taken(8, 28, 256, strides=(2, 2))
    assert not taken(8, 56, 64, strides=(2, 1)) and not taken(8, 56, 64, strides=(3, 3))
    assert not taken(8, 56, 32, strides=(2, 2)) and not taken(8, 9, 64, strides=(2, 2))
    assert not taken(8, 56, 64, taps=5)
    assert not taken(8, 56, 16)
    assert not taken(8, 56, 60)
    assert not taken(1, 14, 64)
    assert not taken(8, 9, 64)


def test_winograds_of_the_wrong_shape_is_an_error() -> None:
    def run(features: int, strides: tuple[int, int]) -> None:
        geometry = Geometry((2, 8, 8, features), (3, 3, features, 16), strides, ((1, 1), (1, 1)), (1, 1))
        inputs, kernel = jnp.zeros(geometry.inputs), jnp.zeros(geometry.kernel)
        jax.block_until_ready(NATIVE_WINOGRAD.outputs(inputs, kernel, geometry))

    with pytest.raises(jax.errors.JaxRuntimeError, match=r"native convolution of .*: Winograd's is for 3x3"):
        run(16, (2, 1))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"native convolution of .*: Winograd's is for .* 16"):
        run(20, (1, 1))
