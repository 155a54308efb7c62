"""Maxima over windows, with the place of each in its window for the gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from covidjax.ops.native.calls import call

Pair = tuple[int, int]
LARGEST_WINDOW = 255  # a place is a byte


def covers(inputs: jax.Array, window: Pair, padding: tuple[Pair, Pair]) -> bool:
    """Whether the shim has this one: float32, nothing empty, no window in the padding alone."""
    inside = all(max(pad) < part and min(pad) >= 0 for pad, part in zip(padding, window, strict=True))
    return inputs.dtype == jnp.float32 and inputs.size > 0 and inside and window[0] * window[1] <= LARGEST_WINDOW


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(
    inputs: jax.Array,
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    elsewhere: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """See `ops.max_pool`; the gradient of a window with a NaN goes to the first of them.

    elsewhere: the same for other platforms than a CPU.
    """
    return _both(inputs, window, strides, padding, elsewhere)[0]


def _both(
    inputs: jax.Array,
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    elsewhere: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """The maxima and their places; no places on other platforms."""

    def library(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = elsewhere(inputs)
        return outputs, jnp.zeros(outputs.shape, np.uint8)

    def here(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = jax.eval_shape(elsewhere, inputs).shape
        results = [jax.ShapeDtypeStruct(shape, inputs.dtype), jax.ShapeDtypeStruct(shape, np.uint8)]
        numbers = (*window, *strides, *padding[0], *padding[1])
        outputs, places = call("max_pool", results, inputs, by_example=("b", "bb"), geometry=numbers)
        return outputs, places

    return lax.platform_dependent(inputs, cpu=here, default=library)


def _forward(
    inputs: jax.Array,
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    elsewhere: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, Any]:
    """Of the inputs a CPU needs no more than the shape: XLA drops what the branch that it compiles does not use."""
    outputs, places = _both(inputs, window, strides, padding, elsewhere)
    return outputs, (inputs, places)


def _backward(
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    elsewhere: Callable[[jax.Array], jax.Array],
    kept: Any,
    cotangent: jax.Array,
) -> tuple[jax.Array]:
    def library(inputs: jax.Array, _: jax.Array, cotangent: jax.Array) -> jax.Array:
        (gradient,) = jax.vjp(elsewhere, inputs)[1](cotangent)
        return gradient

    def here(inputs: jax.Array, places: jax.Array, cotangent: jax.Array) -> jax.Array:
        results = [jax.ShapeDtypeStruct(inputs.shape, cotangent.dtype)]
        numbers = (*window, *strides, *padding[0], *padding[1])
        return call("max_pool_gradient", results, places, cotangent, by_example=("bb", "b"), geometry=numbers)[0]

    return (lax.platform_dependent(*kept, cotangent, cpu=here, default=library),)


max_pool.defvjp(_forward, _backward)
