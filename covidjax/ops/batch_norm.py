"""Batch normalisation, on batch statistics and on running statistics."""

import jax
import jax.numpy as jnp
from jax import lax


def batch_statistics(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last.

    inputs: [..., features] -> two arrays [features], float32 for half-precision inputs. The variance is that of the
    centred values: E[x^2] - E[x]^2 cancels in float32 when the mean is large against the spread.
    """
    axes = tuple(range(inputs.ndim - 1))
    values = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    mean = jnp.mean(values, axes)
    return mean, jnp.mean(jnp.square(values - mean), axes)


def normalise(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, variance: jax.Array, *, epsilon: float
) -> jax.Array:
    """`(inputs - mean) / sqrt(variance + epsilon) * scale + bias` as one multiply-add in the dtype of the inputs.

    inputs: [..., features]; the other arrays: [features]. With running statistics the factors are constants of the
    step, so the compiler fuses this with its neighbours.
    """
    factor = scale * lax.rsqrt(variance + epsilon)
    offset = bias - mean * factor
    return inputs * factor.astype(inputs.dtype) + offset.astype(inputs.dtype)
