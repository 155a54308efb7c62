"""Maxima over windows in the shim."""

import jax
import jax.numpy as jnp

from covidjax.ops.native.calls import LANES, call

Pair = tuple[int, int]


def covers(inputs: jax.Array, window: Pair, strides: Pair) -> bool:
    """Whether the shim has these maxima and is faster: float32, windows that overlap, whole vectors of features."""
    overlap = any(part > stride for part, stride in zip(window, strides, strict=True))
    return overlap and inputs.dtype == jnp.float32 and inputs.size > 0 and inputs.shape[-1] % LANES == 0


def max_pool(inputs: jax.Array, window: Pair, strides: Pair, padding: tuple[Pair, Pair]) -> jax.Array:
    """[batch, height, width, features] float32 -> [batch, out_height, out_width, features]."""
    sizes = zip(inputs.shape[1:3], padding, window, strides, strict=True)
    rows, columns = ((size + sum(pad) - part) // stride + 1 for size, pad, part, stride in sizes)
    results = [jax.ShapeDtypeStruct((inputs.shape[0], rows, columns, inputs.shape[3]), inputs.dtype)]
    return call("max_pool", results, inputs, by_example=("b", "b"), geometry=_numbers(window, strides, padding))[0]


def max_pool_gradient(
    inputs: jax.Array,
    outputs: jax.Array,
    cotangent: jax.Array,
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
) -> jax.Array:
    """Of the shape of the inputs; to the first maximum of each window, row by row."""
    results = [jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)]
    arrays, numbers = (inputs, outputs, cotangent), _numbers(window, strides, padding)
    return call("max_pool_gradient", results, *arrays, by_example=("bbb", "b"), geometry=numbers)[0]


def _numbers(window: Pair, strides: Pair, padding: tuple[Pair, Pair]) -> tuple[int, ...]:
    return (*window, *strides, *padding[0], *padding[1])
