"""Batch normalisation, on batch statistics and on running statistics."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Statistics = tuple[jax.Array, jax.Array]


def batch_norm(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalisation by the statistics of the batch.

    inputs: [..., features]; scale, bias: [features] -> (outputs in the shape and dtype of inputs, mean, variance).
    Mean and (biased) variance are for the running statistics: they carry no gradient.
    axis: the mapped axis over whose devices the batch lies; None for one that is whole here.
    """
    if axis is None:
        return _own_batch_norm(inputs, scale, bias, epsilon)
    # A custom derivative cannot hold a collective: JAX traces it where the axis has no name.
    mean, variance = batch_statistics(inputs, axis)
    outputs = normalise(inputs, scale, bias, mean, variance, epsilon=epsilon)
    return outputs, lax.stop_gradient(mean), lax.stop_gradient(variance)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _own_batch_norm(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Its gradient keeps the inputs and two numbers a feature, where JAX would keep the centred inputs as well."""
    mean, variance = batch_statistics(inputs)
    return normalise(inputs, scale, bias, mean, variance, epsilon=epsilon), mean, variance


def _forward(inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    outputs, mean, variance = _own_batch_norm(inputs, scale, bias, epsilon)
    return (outputs, mean, variance), (inputs, scale, mean, lax.rsqrt(variance + epsilon))


def _backward(_: float, kept: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    inputs, scale, mean, rate = kept
    values, cotangent = inputs.astype(mean.dtype), cotangents[0].astype(mean.dtype)
    axes = tuple(range(inputs.ndim - 1))
    # Of (values - mean) * rate XLA would see that it has been there in the forward pass, and keep it until here.
    offset = lax.optimization_barrier(-mean * rate)
    of_bias, of_scale = jnp.sum(cotangent, axes), jnp.sum(cotangent * (values * rate + offset), axes)
    count = inputs.size // inputs.shape[-1]
    level, slope = of_bias / count, of_scale / count
    of_inputs = (scale * rate) * (cotangent - values * (rate * slope) - (level + offset * slope))
    return of_inputs.astype(inputs.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


_own_batch_norm.defvjp(_forward, _backward)


def batch_statistics(inputs: jax.Array, axis: str | None = None) -> Statistics:
    """Mean and biased variance over all axes but the last, and over the devices of a mapped axis.

    inputs: [..., features] -> two arrays [features], float32 for half-precision inputs. The variance is that of the
    centred values: E[x^2] - E[x]^2 cancels in float32 when the mean is large against the spread.
    """
    axes = tuple(range(inputs.ndim - 1))
    values = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    mean = _mean_over(jnp.mean(values, axes), axis)
    return mean, _mean_over(jnp.mean(jnp.square(values - mean), axes), axis)


def _mean_over(values: jax.Array, axis: str | None) -> jax.Array:
    return values if axis is None else lax.pmean(values, axis)


def normalise(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, variance: jax.Array, *, epsilon: float
) -> jax.Array:
    """`(inputs - mean) / sqrt(variance + epsilon) * scale + bias` as one multiply-add in the dtype of the inputs.

    inputs: [..., features]; the other arrays: [features]. With running statistics the factors are constants of the
    step, so the compiler fuses this with its neighbours.
    """
    factor, offset = affine(scale, bias, mean, variance, epsilon=epsilon)
    return inputs * factor.astype(inputs.dtype) + offset.astype(inputs.dtype)


def affine(
    scale: jax.Array, bias: jax.Array, mean: jax.Array, variance: jax.Array, *, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Factor and offset that normalise; all arrays: [features]."""
    factor = scale * lax.rsqrt(variance + epsilon)
    return factor, bias - mean * factor
