"""Pooling over space."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def max_pool(
    inputs: jax.Array,
    *,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
) -> jax.Array:
    """Maximum over windows; padded positions never win.

    inputs: [batch, height, width, features] -> [batch, out_height, out_width, features].
    """
    lowest = np.array(-np.inf, inputs.dtype)  # a constant: JAX differentiates a maximum only if it sees its start value
    return lax.reduce_window(inputs, lowest, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def global_average_pool(inputs: jax.Array) -> jax.Array:
    """Mean over space: [batch, height, width, features] -> [batch, features]."""
    return jnp.mean(inputs, axis=(1, 2))
