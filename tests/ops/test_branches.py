"""Operations of ConvNeXt and of transformers: depthwise convolution, dense layers with what follows, GELU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covidjax import ops
from covidjax.ops.by_platform import Geometry
from covidjax.ops.choose import choose
from covidjax.ops.depthwise import SHIFTED

NATIVE = choose("auto").native
WAYS = [False, pytest.param(True, marks=pytest.mark.skipif(not NATIVE, reason="native operations are not built"))]
TOLERANCE = 1e-5


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]


def with_gradients(function: Any, *values: jax.Array) -> Any:
    """The outputs, and the gradients of a curved function of them."""
    grads = jax.grad(lambda *values: jnp.sum(jnp.sin(function(*values))), argnums=tuple(range(len(values))))
    return jax.jit(lambda *values: (function(*values), grads(*values)))(*values)


def assert_equal(found: Any, wanted: Any) -> None:
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=TOLERANCE * float(np.abs(other).max()))


def grouped(inputs: jax.Array, kernel: jax.Array, bias: jax.Array, padding: int) -> jax.Array:
    outputs = lax.conv_general_dilated(
        inputs,
        kernel,
        (1, 1),
        ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=inputs.shape[-1],
    )
    return outputs + bias


@pytest.mark.parametrize("native", WAYS)
@pytest.mark.parametrize(("size", "features", "kernel", "padding"), [((9, 6), 16, 7, 3), ((5, 4), 3, 3, 0)])
def test_depthwise_convolution_and_its_gradients_are_those_of_groups(
    size: tuple[int, int], features: int, kernel: int, padding: int, native: bool
) -> None:
    values = arrays((2, *size, features), (kernel, kernel, 1, features), (features,))
    own = partial(ops.convolution, strides=(1, 1), padding=((padding, padding),) * 2, native=native)
    found = with_gradients(lambda inputs, kernel, bias: own(inputs, kernel, bias=bias), *values)
    assert_equal(found, with_gradients(partial(grouped, padding=padding), *values))


def test_dilated_depthwise_convolution_by_shifts_has_the_gradients_of_its_outputs() -> None:
    geometry = Geometry((2, 9, 7, 3), (3, 3, 1, 3), (1, 1), ((2, 1), (1, 2)), (2, 1))
    inputs, kernel = arrays(geometry.inputs, geometry.kernel)
    outputs, pullback = jax.vjp(lambda inputs, kernel: SHIFTED.outputs(inputs, kernel, geometry), inputs, kernel)
    (cotangent,) = arrays(outputs.shape)
    own = SHIFTED.input_gradient(cotangent, kernel, geometry), SHIFTED.kernel_gradient(cotangent, inputs, geometry)
    assert_equal(own, pullback(cotangent))


@pytest.mark.parametrize("native", WAYS)
@pytest.mark.parametrize("positions", [(), (5,), (3, 4)])
def test_dense_layer_and_its_gradients_are_those_of_a_product(positions: tuple[int, ...], native: bool) -> None:
    values = arrays((2, *positions, 16), (16, 24), (24,), (2, *positions, 24))
    found = with_gradients(
        lambda inputs, kernel, bias, residual: ops.dense(inputs, kernel, bias, residual=residual, native=native),
        *values,
    )
    wanted = with_gradients(lambda inputs, kernel, bias, residual: inputs @ kernel + bias + residual, *values)
    assert_equal(found, wanted)


def test_gelu_and_its_gradient_are_those_of_the_normal_distribution() -> None:
    (values,) = arrays((1000,))
    values = 3 * values
    assert_equal(with_gradients(ops.gelu, values), with_gradients(partial(jax.nn.gelu, approximate=False), values))
    half = values.astype(jnp.bfloat16)
    assert ops.gelu(half).dtype == jax.grad(lambda x: jnp.sum(ops.gelu(x)))(half).dtype == jnp.bfloat16
