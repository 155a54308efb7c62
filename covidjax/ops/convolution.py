"""Convolution: one public function, whatever formulation is best on the backend."""

import jax
from jax import lax


def convolution(
    inputs: jax.Array, kernel: jax.Array, *, strides: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> jax.Array:
    """Two-dimensional cross-correlation with explicit padding.

    inputs: [batch, height, width, in_features]; kernel: [kernel_height, kernel_width, in_features,
    features], same dtype.
    Padding is explicit because 'SAME' pads strided convolutions differently from PyTorch and Caffe.
    Returns [batch, out_height, out_width, features].
    """
    return lax.conv_general_dilated(inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
