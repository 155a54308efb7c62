"""Batch normalisation, on batch statistics and on running statistics."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from covidjax.ops.epilogue import add_and_relu
from covidjax.ops.native import batch_norm as in_shim

Statistics = tuple[jax.Array, jax.Array]
# inputs, scale, bias, shift and residual of `batch_norm`
Operands = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]
RESOLVED = 8.0  # units of rounding of a mean of squares that are no variance


def batch_norm(
    inputs: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
    axis: str | None = None,
    *,
    residual: jax.Array | None = None,
    relu: bool = False,
    native: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalisation by the statistics of the batch, and what follows it: `relu(normalised + residual)`.

    inputs: [..., features]; scale, bias: [features]; shift: [features], near the mean, see `batch_statistics`;
    residual: as inputs -> (outputs in the shape and dtype of inputs, mean, variance). Mean and (biased) variance are
    for the running statistics: they carry no gradient, and `shift` gets none.
    axis: the mapped axis over whose devices the batch lies; None for one that is whole here.
    native: in the shim on a CPU, as one operation, where it covers the work.
    """
    if axis is not None:
        # A custom derivative cannot hold a collective: JAX traces it where the axis has no name.
        mean, variance = batch_statistics(inputs, lax.stop_gradient(shift), axis)
        outputs = normalise(inputs, scale, bias, mean, variance, epsilon=epsilon)
        return add_and_relu(outputs, residual, relu=relu), lax.stop_gradient(mean), lax.stop_gradient(variance)
    operands = inputs, scale, bias, shift, residual
    if native and in_shim.covers(inputs, scale):
        return _fused(operands, epsilon, relu)
    return _in_xla(operands, epsilon=epsilon, relu=relu)


def _in_xla(operands: Operands, *, epsilon: float, relu: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    *own, residual = operands
    outputs, mean, variance = _own_batch_norm(*own, epsilon)
    return add_and_relu(outputs, residual, relu=relu), mean, variance


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _fused(operands: Operands, epsilon: float, relu: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """In the shim where the program is for a CPU; that centres the values itself."""

    def here(operands: Operands) -> Any:
        inputs, scale, bias, _, residual = operands
        return in_shim.batch_norm(inputs, scale, bias, residual, epsilon=epsilon, relu=relu)

    return lax.platform_dependent(operands, cpu=here, default=partial(_in_xla, epsilon=epsilon, relu=relu))


def _fused_forward(operands: Operands, epsilon: float, relu: bool) -> Any:
    found, (inputs, scale, bias, _, residual) = _fused(operands, epsilon, relu), operands
    return found, (inputs, found[0] if relu else None, scale, bias, *found[1:], None if residual is None else ())


def _fused_backward(epsilon: float, relu: bool, kept: Any, cotangents: Any) -> Any:
    *arrays, residual = kept

    def here(cotangent: jax.Array, inputs: jax.Array, outputs: jax.Array | None, *rest: jax.Array) -> Any:
        added = outputs if residual is not None else None
        *found, let_through = in_shim.batch_norm_gradient(cotangent, inputs, added, *rest, epsilon=epsilon, relu=relu)
        return *found, None, None if residual is None else let_through if relu else cotangent

    def elsewhere(cotangent: jax.Array, inputs: jax.Array, outputs: jax.Array | None, *rest: jax.Array) -> Any:
        scale, _, mean, variance = rest
        cotangent = cotangent if outputs is None else jnp.where(outputs > 0, cotangent, 0)
        found = _backward(epsilon, (inputs, scale, mean, lax.rsqrt(variance + epsilon)), (cotangent,))
        return *found, None if residual is None else cotangent

    return (lax.platform_dependent(cotangents[0], *arrays, cpu=here, default=elsewhere),)


_fused.defvjp(_fused_forward, _fused_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _own_batch_norm(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Its gradient keeps the inputs and two numbers a feature, where JAX would keep the centred inputs as well."""
    mean, variance = batch_statistics(inputs, shift)
    return normalise(inputs, scale, bias, mean, variance, epsilon=epsilon), mean, variance


def _forward(inputs: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, epsilon: float) -> Any:
    outputs, mean, variance = _own_batch_norm(inputs, scale, bias, shift, epsilon)
    return (outputs, mean, variance), (inputs, scale, mean, lax.rsqrt(variance + epsilon))


def _backward(_: float, kept: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    inputs, scale, mean, rate = kept
    values, cotangent = inputs.astype(mean.dtype), cotangents[0].astype(mean.dtype)
    # Of (values - mean) * rate XLA would see that it has been there in the forward pass, and keep it until here.
    offset = lax.optimization_barrier(-mean * rate)
    of_bias, of_scale = _sums(cotangent, cotangent * (values * rate + offset))
    count = inputs.size // inputs.shape[-1]
    level, slope = of_bias / count, of_scale / count
    of_inputs = (scale * rate) * (cotangent - values * (rate * slope) - (level + offset * slope))
    return of_inputs.astype(inputs.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype), None


_own_batch_norm.defvjp(_forward, _backward)


def batch_statistics(inputs: jax.Array, shift: jax.Array, axis: str | None = None) -> Statistics:
    """Mean and biased variance over all axes but the last, and over the devices of a mapped axis, in one pass.

    inputs: [..., features]; shift: [features], near the mean, as the running mean is, and the same on all devices ->
    two arrays [features], float32 for half-precision inputs. Sums are those of `inputs - shift`, so that
    E[x^2] - E[x]^2 does not cancel where the mean is large against the spread. Where the shift is far from it (in the
    first steps of a fresh network the running mean is zero) rounding has its part in the variance, which is then at
    least RESOLVED units of what was subtracted: rather too large, so that outputs are too small and never explode.
    """
    values = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)) - shift
    count = inputs.size // inputs.shape[-1]
    level, square = (total / count for total in _sums(values, jnp.square(values)))
    if axis is not None:
        level, square = lax.pmean((level, square), axis)
    least = RESOLVED * jnp.finfo(values.dtype).eps * square
    return checkpoint_name((shift + level, jnp.maximum(square - jnp.square(level), least)), "statistics")


def _sums(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each of two arrays [..., features] over all axes but the last.

    On a GPU as one sum of complex numbers, which is two kernels where two sums are three. Elsewhere as two of one
    form, which XLA fuses into what makes the arrays, and whose exchange between devices it combines.
    """

    def as_one(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jnp.sum(lax.complex(first, second), axes)
        return total.real, total.imag

    def as_two(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(first, axes), jnp.sum(second, axes)

    axes = tuple(range(first.ndim - 1))
    return lax.platform_dependent(first, second, cuda=as_one, default=as_two)


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
