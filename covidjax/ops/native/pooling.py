"""Maxima over windows in the shim."""

import jax

from covidjax.ops.native.calls import call

Pair = tuple[int, int]


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
