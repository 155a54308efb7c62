"""Convolution with a 3x3 kernel by Winograd's F(4x4, 3x3): a quarter of the multiplications, as batched products.

Lavin and Gray 2015 (arXiv 1509.09308). Input and output are cut into tiles of 4x4 outputs, which see 6x6 inputs;
tiles and kernel are evaluated at six points along each axis, multiplied there, and interpolated back:
`outputs = A.T [(G kernel G.T) * (B.T inputs B)] A`.
The points 0, 3/4, -3/4, 3/2, -3/2 and infinity instead of the usual 0, 1, -1, 2, -2: the largest error in float32
falls to a quarter, 1e-6 to 3e-6 of the largest output where a direct sum has 3e-7 (Barabasz et al. 2018,
arXiv 1803.10986, on how the points decide the error).
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from covidjax.ops.by_platform import Formulation, Geometry, after, kernel_after

TILE = 4  # outputs of a tile along each axis
SEEN = TILE + 2  # inputs that they see
# The order in which the two axes are transformed. It differs between the passes, or XLA would find the transformed
# inputs of the forward pass in the backward pass, and keep them, more than twice as large as the inputs.
Order = tuple[int, int]
FORWARD, BACKWARD = (0, 1), (1, 0)
POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)  # fractions of powers of two, so that INPUTS and OUTPUTS are exact


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`B.T` [6, 6], `G` [6, 3] and `A.T` [4, 6] of Toom's and Cook's interpolation, infinity last."""
    inputs, kernel = np.zeros((SEEN, SEEN)), np.zeros((SEEN, 3))
    outputs = np.vander((*POINTS, 0), TILE, increasing=True).T
    for row, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        inputs[row, :-1] = np.poly(others)[::-1]
        kernel[row] = np.array([1, point, point**2]) / np.prod([point - other for other in others])
    inputs[-1] = np.poly(POINTS)[::-1]
    kernel[-1, -1] = 1
    outputs[:, -1] = [0] * (TILE - 1) + [1]
    return inputs, kernel, outputs


INPUTS, KERNEL, OUTPUTS = _matrices()


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The matrix times a column of arrays."""
    rows = []
    for row in matrix:
        terms = [
            part if factor == 1 else float(factor) * part for factor, part in zip(row, parts, strict=True) if factor
        ]
        rows.append(sum(terms[1:], terms[0]))
    return rows


def tile_counts(geometry: Geometry) -> tuple[int, int]:
    """How many rows and columns of tiles an output has."""
    rows, columns = (-(-extent // TILE) for extent in geometry.size)
    return rows, columns


def gain(geometry: Geometry) -> float:
    """The saving of a tile, the product of the features, by its cost, their sum to transform: [features]."""
    in_features, features = geometry.kernel[2:]
    return in_features * features / (in_features + features)


def fits(geometry: Geometry) -> bool:
    """Whether a convolution is one for F(4x4, 3x3)."""
    return (geometry.kernel[:2], geometry.strides, geometry.dilation) == ((3, 3), (1, 1), (1, 1))


def applies(geometry: Geometry) -> bool:
    """Whether it is, and there are tiles enough to make up for the transformation of the kernel."""
    return fits(geometry) and geometry.inputs[0] * math.prod(tile_counts(geometry)) >= 64


def _input_points(inputs: jax.Array, geometry: Geometry, order: Order) -> jax.Array:
    """[batch, height, width, in_features] -> [36, tiles of the batch, in_features]."""
    tiles = tile_counts(geometry)
    padding = [
        (before, TILE * count + 2 - extent - before)
        for (before, _), count, extent in zip(geometry.padding, tiles, inputs.shape[1:3], strict=True)
    ]
    points = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    for done, axis in enumerate(order):
        last = TILE * (tiles[axis] - 1) + 1
        # The first input of each tile, the second, and so on.
        seen = [lax.slice_in_dim(points, i, i + last, TILE, 1 + axis + done) for i in range(SEEN)]
        points = jnp.stack(_combine(INPUTS, seen))
    return points.reshape(SEEN**2, -1, inputs.shape[-1])


def _kernel_points(kernel: jax.Array, order: Order) -> jax.Array:
    """[3, 3, in_features, features] -> [36, in_features, features]."""
    points = kernel
    for axis in (order[0], 1):  # the first to be transformed goes to the front
        points = jnp.stack(_combine(KERNEL, [lax.index_in_dim(points, i, axis, keepdims=False) for i in range(3)]))
    return points.reshape(SEEN**2, *kernel.shape[2:])


def _cotangent_points(cotangent: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, out_height, out_width, features] -> [36, tiles of the batch, features]."""
    tiles = tile_counts(geometry)
    padding = [(0, TILE * count - extent) for count, extent in zip(tiles, geometry.size, strict=True)]
    points = jnp.pad(cotangent, ((0, 0), *padding, (0, 0)))
    for done, axis in enumerate(BACKWARD):
        at = 1 + axis + done
        points = points.reshape(*points.shape[:at], tiles[axis], TILE, *points.shape[at + 1 :])
        parts = [lax.index_in_dim(points, i, at + 1, keepdims=False) for i in range(TILE)]
        points = jnp.stack(_combine(OUTPUTS.T, parts))
    return points.reshape(SEEN**2, -1, cotangent.shape[-1])


def _multiply(first: jax.Array, second: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    return lax.dot_general(first, second, (((contracted[0],), (contracted[1],)), ((0,), (0,))))


def outputs(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, height, width, in_features], [3, 3, in_features, features] -> [batch, *geometry.size, features]."""
    tiles, (height, width) = tile_counts(geometry), geometry.size
    batch, features = inputs.shape[0], kernel.shape[-1]
    points = _multiply(_input_points(inputs, geometry, FORWARD), _kernel_points(kernel, FORWARD), (2, 1))
    points = points.reshape(SEEN, SEEN, batch, *tiles, features)
    columns = jnp.stack(_combine(OUTPUTS, list(points)), axis=4).reshape(SEEN, batch, tiles[0], -1, features)
    rows = jnp.stack(_combine(OUTPUTS, list(columns)), axis=2)
    return rows.reshape(batch, TILE * tiles[0], -1, features)[:, :height, :width]


def input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, *geometry.size, features], [3, 3, in_features, features] -> the shape of the inputs."""
    tiles, (batch, height, width, in_features) = tile_counts(geometry), geometry.inputs
    points = _multiply(
        _cotangent_points(cotangent, geometry), _kernel_points(kernel_after(cotangent, kernel), BACKWARD), (2, 2)
    )
    points = points.reshape(SEEN, SEEN, batch, *tiles, in_features)
    (top, _), (left, _) = geometry.padding
    rows = _overlapping(_combine(INPUTS.T, list(points)), 2)
    rows = lax.slice_in_dim(rows, top, top + height, axis=2)
    columns = _overlapping(_combine(INPUTS.T, list(rows)), 2)
    return lax.slice_in_dim(columns, left, left + width, axis=2)


def _overlapping(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """The six inputs of each tile, added up where tiles overlap: 4 * (tiles + 1) inputs along `axis`."""

    def shifted(array: jax.Array, tiles: int) -> jax.Array:
        padding = [(0, 0)] * array.ndim
        padding[axis] = (tiles, 1 - tiles)
        return jnp.pad(array, padding)

    own = [shifted(part, 0) for part in parts[:TILE]]
    beyond = [shifted(part, 1) for part in parts[TILE:]]
    sums = [a if b is None else a + b for a, b in itertools.zip_longest(own, beyond)]
    stacked = jnp.stack(sums, axis + 1)
    return stacked.reshape(*stacked.shape[:axis], -1, *stacked.shape[axis + 2 :])


def kernel_gradient(cotangent: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, *geometry.size, features], the inputs -> [3, 3, in_features, features]."""
    of_inputs = _input_points(after(cotangent, inputs), geometry, BACKWARD)
    points = _multiply(of_inputs, _cotangent_points(cotangent, geometry), (1, 1))
    points = points.reshape(SEEN, SEEN, *geometry.kernel[2:])
    rows = jnp.stack(_combine(KERNEL.T, list(points)), axis=1)
    return jnp.stack(_combine(KERNEL.T, list(rows)), axis=1)


WINOGRAD = Formulation(outputs, input_gradient, kernel_gradient)
