"""Depthwise convolution on a CPU, whose library in XLA has loops of its own for it: sums of shifted products."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from covidjax.ops.by_platform import Formulation, Geometry


def _seen(inputs: jax.Array, geometry: Geometry) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """The inputs of the outputs through each tap of the kernel; strides are 1."""
    padded = jnp.pad(inputs, ((0, 0), *geometry.padding, (0, 0)))
    (height, width), (batch, *_, features) = geometry.size, geometry.inputs
    for row, column in itertools.product(range(geometry.kernel[0]), range(geometry.kernel[1])):
        first = row * geometry.dilation[0], column * geometry.dilation[1]
        yield (row, column), lax.slice(padded, (0, *first, 0), (batch, first[0] + height, first[1] + width, features))


def _outputs(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return sum(seen * kernel[tap][0] for tap, seen in _seen(inputs, geometry))  # type: ignore[return-value]


def _input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution with the kernel turned round."""
    sizes = zip(geometry.kernel[:2], geometry.dilation, geometry.padding, strict=True)
    padding = tuple((d * (size - 1) - before, d * (size - 1) - after) for size, d, (before, after) in sizes)
    back = Geometry(cotangent.shape, geometry.kernel, (1, 1), padding, geometry.dilation)  # type: ignore[arg-type]
    return _outputs(cotangent, kernel[::-1, ::-1], back)


def _kernel_gradient(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    sums = [jnp.sum(seen * cotangent, (0, 1, 2)) for _, seen in _seen(inputs, geometry)]
    return jnp.stack(sums).reshape(geometry.kernel)


SHIFTED = Formulation(_outputs, _input_gradient, _kernel_gradient)
