"""Pooling over space."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from covidjax.ops.by_platform import after
from covidjax.ops.native import pooling as native_pooling
from covidjax.ops.native.pooling import Pair, Windows


def max_pool(
    inputs: jax.Array,
    *,
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
    native: bool = False,
) -> jax.Array:
    """Maximum over windows; padded positions never win.

    inputs: [batch, height, width, features] -> [batch, out_height, out_width, features].
    native: in the shim on a CPU, where it covers the work and is faster.
    The gradient goes to the first maximum of a window, row by row; that of a window with a NaN to one of its positions.
    """
    windows = Windows(window, strides, padding)
    if any(size + sum(pad) < part for size, pad, part in zip(inputs.shape[1:3], padding, window, strict=True)):
        return plain(inputs, windows)  # not one window
    return _outputs(inputs, windows, native and native_pooling.covers(inputs, windows))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
@partial(jax.jit, static_argnums=(1, 2))
def _outputs(inputs: jax.Array, windows: Windows, native: bool) -> jax.Array:
    ways = native_pooling.max_pool if native else by_axis, plain
    on_cpu, elsewhere = (partial(way, windows=windows) for way in ways)
    return lax.platform_dependent(inputs, cpu=on_cpu, default=elsewhere)


def _forward(inputs: jax.Array, windows: Windows, native: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    outputs = _outputs(inputs, windows, native)
    return outputs, (inputs, outputs)


def _backward(
    windows: Windows, native: bool, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array]:
    return (_gradient(*kept, cotangent, windows, native),)


_outputs.defvjp(_forward, _backward)


@partial(jax.jit, static_argnums=(3, 4))
def _gradient(inputs: jax.Array, outputs: jax.Array, cotangent: jax.Array, windows: Windows, native: bool) -> jax.Array:
    ways = native_pooling.max_pool_gradient if native else gradient_by_axis, plain
    on_cpu, library = (partial(way, windows=windows) for way in ways)

    def elsewhere(inputs: jax.Array, _: jax.Array, cotangent: jax.Array) -> jax.Array:
        (gradient,) = jax.vjp(library, inputs)[1](cotangent)
        return gradient

    def on_gpu(inputs: jax.Array, _: jax.Array, cotangent: jax.Array) -> jax.Array:
        return _gradient_of_axes(inputs, cotangent, windows)

    return lax.platform_dependent(inputs, outputs, cotangent, cpu=on_cpu, cuda=on_gpu, default=elsewhere)


def plain(inputs: jax.Array, windows: Windows) -> jax.Array:
    """XLA's windows; their gradient is a scatter, which XLA:CPU does element by element."""
    lowest = np.array(-np.inf, inputs.dtype)  # a constant: JAX differentiates a maximum only if it sees its start value
    window, strides, padding = (1, *windows.window, 1), (1, *windows.strides, 1), ((0, 0), *windows.padding, (0, 0))
    return lax.reduce_window(inputs, lowest, lax.max, window, strides, padding)


def by_axis(inputs: jax.Array, windows: Windows) -> jax.Array:
    """The maxima of each row's windows, then of these along the columns."""
    rows, columns = zip(*windows, strict=True)
    return _along(_along(inputs, 2, *columns), 1, *rows)


def gradient_by_axis(inputs: jax.Array, _: jax.Array, cotangent: jax.Array, windows: Windows) -> jax.Array:
    """To the first row that holds the maximum, in it to the first column.

    The positions of a window are compared with each other, never with the maximum of the forward pass: XLA may work
    out the inputs again beside the gradient, with another rounding, and then no value equals that.
    """
    return _gradient_of_axes(after(cotangent, inputs), cotangent, windows)


def _gradient_of_axes(inputs: jax.Array, cotangent: jax.Array, windows: Windows) -> jax.Array:
    rows, columns = zip(*windows, strict=True)
    of_rows = _gradient_along(_along(inputs, 2, *columns), cotangent, 1, *rows)
    return _gradient_along(inputs, of_rows, 2, *columns)


def _along(inputs: jax.Array, axis: int, window: int, stride: int, padding: Pair) -> jax.Array:
    """Maxima of windows along one axis."""
    first, *others = _positions(_padded(inputs, axis, padding), axis, window, stride)
    for other in others:
        first = jnp.maximum(first, other)
    return first


def _gradient_along(
    inputs: jax.Array, cotangent: jax.Array, axis: int, window: int, stride: int, padding: Pair
) -> jax.Array:
    size = inputs.shape[axis]
    if window == stride and size == window * cotangent.shape[axis]:
        return _gradient_of_tiles(inputs, cotangent, axis, window)
    padded = _padded(inputs, axis, padding)
    zero = np.zeros((), cotangent.dtype)
    parts = []
    for place, first in enumerate(_first(_positions(padded, axis, window, stride))):
        behind = padded.shape[axis] - place - (cotangent.shape[axis] - 1) * stride - 1
        spread = [(0, 0, 0)] * inputs.ndim
        spread[axis] = (place, behind, stride - 1)
        parts.append(lax.pad(jnp.where(first, cotangent, zero), zero, spread))
    return lax.slice_in_dim(sum(parts[1:], parts[0]), padding[0], padding[0] + size, axis=axis)


def _gradient_of_tiles(inputs: jax.Array, cotangent: jax.Array, axis: int, window: int) -> jax.Array:
    """Where windows neither overlap nor leave anything out: as one operation over the whole map."""
    tiles = inputs.reshape(*inputs.shape[:axis], -1, window, *inputs.shape[axis + 1 :])
    place = lax.broadcasted_iota(np.int32, tiles.shape, axis + 1)
    first = jnp.zeros((), bool)
    for number, hit in enumerate(_first([lax.slice_in_dim(tiles, k, k + 1, axis=axis + 1) for k in range(window)])):
        first |= (place == number) & hit
    cotangent = jnp.expand_dims(cotangent, axis + 1)
    return jnp.where(first, cotangent, np.zeros((), cotangent.dtype)).reshape(inputs.shape)


def _first(positions: Sequence[jax.Array]) -> list[jax.Array]:
    """For each position of the windows, whether it holds the first maximum: always one of them, also beside a NaN."""
    first: list[jax.Array] = []
    taken = jnp.zeros((), bool)
    for place, position in enumerate(positions):
        hit = ~taken
        for later in positions[place + 1 :]:
            hit &= ~(position < later)
        first.append(hit)
        taken |= hit
    return first


def _padded(inputs: jax.Array, axis: int, padding: Pair) -> jax.Array:
    if not any(padding):
        return inputs
    widths = [(0, 0)] * inputs.ndim
    widths[axis] = padding
    return jnp.pad(inputs, widths, constant_values=-np.inf)


def _positions(padded: jax.Array, axis: int, window: int, stride: int) -> list[jax.Array]:
    """The first element of each window, the second, and so on."""
    last = (padded.shape[axis] - window) // stride * stride + 1
    return [lax.slice_in_dim(padded, place, place + last, stride, axis) for place in range(window)]


def global_average_pool(inputs: jax.Array) -> jax.Array:
    """Mean over space: [batch, height, width, features] -> [batch, features]."""
    return jnp.mean(inputs, axis=(1, 2))


def global_max_pool(inputs: jax.Array) -> jax.Array:
    """Maximum over space: [batch, height, width, features] -> [batch, features].

    The gradient goes to the first maximum, row by row. It is told from places, not from values: XLA may work out the
    inputs again beside the gradient, with another rounding, and then no value equals the maximum.
    """
    flat = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    first = jnp.argmax(flat, axis=1, keepdims=True)
    chosen = lax.broadcasted_iota(first.dtype, flat.shape, 1) == first
    return jnp.sum(jnp.where(chosen, flat, np.zeros((), flat.dtype)), axis=1)
