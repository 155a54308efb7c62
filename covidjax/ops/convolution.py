"""Convolution: one public function, whatever formulation is best on the backend."""

import jax
from jax import lax


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
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(inputs, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=layouts)
