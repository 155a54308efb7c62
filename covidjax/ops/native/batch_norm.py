"""Batch normalisation in the shim, as one operation with what follows it."""

from typing import Any

import jax
import jax.numpy as jnp

from covidjax.ops.native.calls import LANES, NONE, local_call

Optional = jax.Array | None


def covers(inputs: jax.Array, scale: jax.Array) -> bool:
    """Whether the shim has it: float32, whole vectors of features, and one device, which has the batch whole."""
    whole = inputs.ndim > 1 and inputs.size > 0 and inputs.shape[-1] % LANES == 0
    return whole and inputs.dtype == scale.dtype == jnp.float32 and jax.device_count() == 1


def batch_norm(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, residual: Optional, *, epsilon: float, relu: bool
) -> tuple[jax.Array, ...]:
    """`relu(normalised + residual)`, mean and biased variance; shapes: see `ops.batch_norm`."""
    results = [_like(inputs), _like(scale), _like(scale)]
    arrays = inputs, scale, bias, NONE if residual is None else residual
    return local_call("batch_norm", results, *arrays, epsilon=epsilon, relu=relu)


def batch_norm_gradient(
    cotangent: jax.Array,
    inputs: jax.Array,
    outputs: Optional,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    *,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, ...]:
    """Of inputs, scale and bias, and what the ReLU lets through of the cotangent, which is the residual's.

    outputs: those of a ReLU after a residual; None where there was none, and then the last result is without elements.
    """
    kept = NONE if outputs is None else outputs
    results = [_like(inputs), _like(scale), _like(scale), _like(kept)]
    arrays = cotangent, inputs, kept, scale, bias, mean, variance
    return local_call("batch_norm_gradient", results, *arrays, epsilon=epsilon, relu=relu)


def _like(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
