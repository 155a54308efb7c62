"""Batch normalisation by the statistics of the batch, with what follows it, and its gradient; each in one operation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from covidjax.ops.native.calls import NONE, call

Optional = jax.Array | None
Norm = Callable[[jax.Array, jax.Array, jax.Array, Optional], tuple[jax.Array, jax.Array, jax.Array]]


def covers(inputs: jax.Array, scale: jax.Array) -> bool:
    """Whether the shim has this one: float32, nothing empty, and one device.

    Devices that share a batch need each other's sums between the two passes over it: XLA's way has them.
    """
    return inputs.dtype == scale.dtype == jnp.float32 and inputs.size > 0 and jax.device_count() == 1


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def batch_norm(
    inputs: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: Optional,
    epsilon: float,
    relu: bool,
    elsewhere: Norm,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`relu(normalised + residual)`, mean and biased variance; see `ops.batch_norm`.

    elsewhere: (inputs, scale, bias, residual) -> the same, for other platforms than a CPU.
    """
    outputs = partial(_outputs, epsilon=epsilon, relu=relu)
    return lax.platform_dependent(inputs, scale, bias, residual, cpu=outputs, default=elsewhere)


def _forward(
    inputs: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: Optional,
    epsilon: float,
    relu: bool,
    elsewhere: Norm,
) -> tuple[Any, Any]:
    """Without a residual the inputs tell where the relu was open, and the outputs need not be kept for that."""
    found = outputs, mean, variance = batch_norm(inputs, scale, bias, residual, epsilon, relu, elsewhere)
    seen = outputs if relu and residual is not None else None
    return found, (inputs, scale, bias, residual, mean, variance, seen)


def _backward(epsilon: float, relu: bool, elsewhere: Norm, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    def library(kept: Any, cotangent: jax.Array) -> Any:
        inputs, scale, bias, residual, *_ = kept
        _, pullback = jax.vjp(lambda *arguments: elsewhere(*arguments)[0], inputs, scale, bias, residual)
        return pullback(cotangent)

    gradients = partial(_gradients, epsilon=epsilon, relu=relu)
    return lax.platform_dependent(kept, cotangents[0], cpu=gradients, default=library)


batch_norm.defvjp(_forward, _backward)


def _outputs(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, residual: Optional, *, epsilon: float, relu: bool
) -> Any:
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (inputs, scale, scale)]
    other = NONE if residual is None else residual
    return call("batch_norm", results, inputs, scale, bias, other, epsilon=epsilon, relu=relu)


def _gradients(kept: Any, cotangent: jax.Array, *, epsilon: float, relu: bool) -> Any:
    inputs, scale, bias, residual, mean, variance, outputs = kept
    masked = NONE if outputs is None else inputs  # the cotangent behind the relu, which the residual gets
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (inputs, scale, bias, masked)]
    seen = NONE if outputs is None else outputs
    arrays = (inputs, scale, bias, mean, variance, seen, cotangent)
    *gradients, of_residual = call("batch_norm_gradient", results, *arrays, epsilon=epsilon, relu=relu)
    if residual is None:
        return *gradients, None
    return *gradients, of_residual if relu else cotangent
