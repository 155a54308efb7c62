"""Convolution, in the formulation that is fastest on the platform."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from covidjax.ops import winograd
from covidjax.ops.by_platform import Formulation, Geometry, product, transposed
from covidjax.ops.winograd import WINOGRAD


def convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
) -> jax.Array:
    """Two-dimensional cross-correlation with explicit padding.

    inputs: [batch, height, width, in_features]; kernel: [kernel_height, kernel_width, in_features,
    features], same dtype.
    Padding is explicit because 'SAME' pads strided convolutions differently from PyTorch and Caffe.
    dilation: the distance of neighbouring taps of the kernel in the input.
    Returns [batch, out_height, out_width, features].
    """
    geometry = Geometry(inputs.shape, kernel.shape, strides, padding, dilation)  # type: ignore[arg-type]
    return product(inputs, kernel, geometry, formulation_on_cpu(geometry, inputs.dtype), PLAIN)


def plain(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution of the platform's library."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _columns(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """What each output sees, side by side (im2col): [outputs of the batch, taps * in_features]."""
    padded = jnp.pad(inputs, ((0, 0), *geometry.padding, (0, 0)))
    (height, width), (batch, *_, in_features) = geometry.size, geometry.inputs

    def seen(row: int, column: int) -> jax.Array:
        """Through one tap of the kernel: [batch, out_height, out_width, in_features]."""
        first = (row * geometry.dilation[0], column * geometry.dilation[1])
        stop = tuple(f + s * (n - 1) + 1 for f, s, n in zip(first, geometry.strides, (height, width), strict=True))
        return lax.slice(padded, (0, *first, 0), (batch, *stop, in_features), (1, *geometry.strides, 1))

    taps = [seen(*place) for place in itertools.product(*map(range, geometry.kernel[:2]))]
    matrix = taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)
    return matrix.reshape(batch * height * width, -1)


def product_of_columns(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution as one matrix product. For a 1x1 kernel that is all it is."""
    outputs = _columns(inputs, geometry) @ kernel.reshape(-1, geometry.kernel[-1])
    return outputs.reshape(geometry.inputs[0], *geometry.size, -1)


def _kernel_gradient_of_columns(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """The wider matrix stands on the right, where XLA's product takes up to half the time."""
    matrix, cotangent = _columns(inputs, geometry), cotangent.reshape(-1, geometry.kernel[-1])
    if matrix.shape[1] <= cotangent.shape[1]:
        gradient = _contract_rows(matrix, cotangent)
    else:  # the barrier keeps XLA from exchanging the two to save the transposition
        gradient = lax.optimization_barrier(_contract_rows(cotangent, matrix)).T
    return gradient.reshape(geometry.kernel)


def _contract_rows(first: jax.Array, second: jax.Array) -> jax.Array:
    return lax.dot_general(first, second, (((0,), (0,)), ((), ())))


PLAIN = transposed(plain)
COLUMNS = dataclasses.replace(transposed(product_of_columns), kernel_gradient=_kernel_gradient_of_columns)


def formulation_on_cpu(geometry: Geometry, dtype: jax.typing.DTypeLike) -> Formulation:
    """What is fastest with XLA's operations on a CPU, as far as `benchmarks/ops.py` has measured it."""
    in_features, features = geometry.kernel[2:]
    (height, width), maps = geometry.size, (*geometry.inputs[1:3], *geometry.size)
    extent = max(d * (k - 1) + 1 for d, k in zip(geometry.dilation, geometry.kernel[:2], strict=True))
    if extent == 1 or extent > min(maps):  # XLA's own loops, not its library, where the kernel is larger than the map
        return COLUMNS
    if dtype == jnp.float32 and winograd.applies(geometry):
        # What a tile costs is the sum of the features to transform, what it saves their product.
        gain = in_features * features / (in_features + features)
        if gain >= 20:
            return WINOGRAD
        if gain >= 10:
            return dataclasses.replace(PLAIN, kernel_gradient=WINOGRAD.kernel_gradient)
    if features >= 256 and height * width <= 49:
        return COLUMNS
    taps = math.prod(geometry.kernel[:2])
    held = math.prod(geometry.inputs[1:]) + height * width * features
    if taps * in_features * height * width <= 5 * held:
        return dataclasses.replace(PLAIN, kernel_gradient=COLUMNS.kernel_gradient)
    return PLAIN
