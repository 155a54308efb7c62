"""The operations that follow a convolution or a normalisation."""

import jax
import jax.numpy as jnp
from jax import lax

KEPT = ("convolution", "statistics")  # names of results that `remat='lean'` keeps for the backward pass


def add_and_relu(outputs: jax.Array, *terms: jax.Array | None, relu: bool) -> jax.Array:
    """`relu(outputs + terms)` in XLA; a term that is None is none."""
    added = [term for term in terms if term is not None]
    for term in added:
        outputs = outputs + term
    if not relu:
        return outputs
    return _relu_of_sum(outputs) if added else jax.nn.relu(outputs)


@jax.custom_vjp
def _relu_of_sum(inputs: jax.Array) -> jax.Array:
    """Its gradient looks at the outputs, which the next layer keeps anyway, and not at what was added up."""
    return jnp.maximum(inputs, 0)


def _forward(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    outputs = _relu_of_sum(inputs)
    return outputs, outputs


def _backward(outputs: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    outputs = lax.optimization_barrier(outputs)  # else XLA would keep the sum as well, to work them out again
    return (jnp.where(outputs > 0, cotangent, 0),)


_relu_of_sum.defvjp(_forward, _backward)


@jax.custom_vjp
def gelu(inputs: jax.Array) -> jax.Array:
    """`inputs * normal distribution(inputs)` (Hendrycks and Gimpel 2016, arXiv 1606.08415), not the approximation.

    Its gradient works the distribution out again, and keeps the inputs alone.
    """
    return jax.nn.gelu(inputs, approximate=False)


def _gelu_forward(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(inputs), inputs


def _gelu_backward(inputs: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    wide = lax.optimization_barrier(inputs).astype(jnp.promote_types(inputs.dtype, jnp.float32))
    slope = jax.scipy.stats.norm.cdf(wide) + wide * jax.scipy.stats.norm.pdf(wide)
    return (cotangent * slope.astype(cotangent.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
