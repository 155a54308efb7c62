"""The operations that follow a convolution or a normalisation."""

import jax


def add_and_relu(outputs: jax.Array, *terms: jax.Array | None, relu: bool) -> jax.Array:
    """`relu(outputs + terms)` in XLA; a term that is None is none."""
    for term in terms:
        outputs = outputs if term is None else outputs + term
    return jax.nn.relu(outputs) if relu else outputs
