"""Maxima over windows in the shim."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from covidjax.ops.native.calls import LANES, call

Pair = tuple[int, int]


class Windows(NamedTuple):
    """The windows over a map: their height and width, their strides, and the padding before and after each axis."""

    window: Pair
    strides: Pair
    padding: tuple[Pair, Pair]

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of it, as the shim takes it."""
        return (*self.window, *self.strides, *self.padding[0], *self.padding[1])


def covers(inputs: jax.Array, windows: Windows) -> bool:
    """Whether the shim has these maxima and is faster: float32, windows that overlap, whole vectors of features."""
    overlap = any(part > stride for part, stride in zip(windows.window, windows.strides, strict=True))
    return overlap and inputs.dtype == jnp.float32 and inputs.size > 0 and inputs.shape[-1] % LANES == 0


def max_pool(inputs: jax.Array, windows: Windows) -> jax.Array:
    """[batch, height, width, features] float32 -> [batch, out_height, out_width, features]."""
    sizes = zip(inputs.shape[1:3], windows.padding, windows.window, windows.strides, strict=True)
    rows, columns = ((size + sum(pad) - part) // stride + 1 for size, pad, part, stride in sizes)
    shape = (inputs.shape[0], rows, columns, inputs.shape[3])
    return call("max_pool", shape, inputs, by_example=("b", "b"), geometry=windows.numbers)


def max_pool_gradient(inputs: jax.Array, outputs: jax.Array, cotangent: jax.Array, windows: Windows) -> jax.Array:
    """Of the shape of the inputs; to the first maximum of each window, row by row."""
    arrays = inputs, outputs, cotangent
    return call("max_pool_gradient", inputs.shape, *arrays, by_example=("bbb", "b"), geometry=windows.numbers)
