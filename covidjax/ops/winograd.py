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

from covidjax.ops.by_platform import Formulation, Geometry

TILE = 4  # outputs of a tile along each axis
SEEN = TILE + 2  # inputs that they see
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


def _tiles(geometry: Geometry) -> tuple[int, int]:
    rows, columns = (-(-extent // TILE) for extent in geometry.size)
    return rows, columns


def applies(geometry: Geometry) -> bool:
    """Whether this is the right kernel, and there are tiles enough to make up for the transformation of the kernel."""
    right = (geometry.kernel[:2], geometry.strides, geometry.dilation) == ((3, 3), (1, 1), (1, 1))
    return right and geometry.inputs[0] * math.prod(_tiles(geometry)) >= 64


def _input_points(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, height, width, in_features] -> [36, tiles of the batch, in_features]."""
    tiles = _tiles(geometry)
    padding = [
        (before, TILE * count + 2 - extent - before)
        for (before, _), count, extent in zip(geometry.padding, tiles, inputs.shape[1:3], strict=True)
    ]
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))

    def seen(array: jax.Array, axis: int, count: int) -> list[jax.Array]:
        """The first input of each tile, the second, and so on."""
        last = TILE * (count - 1) + 1
        return [lax.slice_in_dim(array, place, place + last, TILE, axis) for place in range(SEEN)]

    rows = jnp.stack(_combine(INPUTS, seen(padded, 1, tiles[0])))
    points = jnp.stack(_combine(INPUTS, seen(rows, 3, tiles[1])))
    return points.reshape(SEEN**2, -1, inputs.shape[-1])


def _kernel_points(kernel: jax.Array) -> jax.Array:
    """[3, 3, in_features, features] -> [36, in_features, features]."""
    rows = jnp.stack(_combine(KERNEL, list(kernel)))
    points = jnp.stack(_combine(KERNEL, [rows[:, column] for column in range(3)]))
    return points.reshape(SEEN**2, *kernel.shape[2:])


def _cotangent_points(cotangent: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, out_height, out_width, features] -> [36, tiles of the batch, features]."""
    tiles, (batch, height, width, features) = _tiles(geometry), cotangent.shape
    padding = ((0, TILE * tiles[0] - height), (0, TILE * tiles[1] - width))
    padded = jnp.pad(cotangent, ((0, 0), *padding, (0, 0)))
    padded = padded.reshape(batch, tiles[0], TILE, TILE * tiles[1], features)
    rows = jnp.stack(_combine(OUTPUTS.T, [padded[:, :, place] for place in range(TILE)]))
    rows = rows.reshape(SEEN, batch, *tiles, TILE, features)
    points = jnp.stack(_combine(OUTPUTS.T, [rows[..., place, :] for place in range(TILE)]))
    return points.reshape(SEEN**2, -1, features)


def _multiply(first: jax.Array, second: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    return lax.dot_general(first, second, (((contracted[0],), (contracted[1],)), ((0,), (0,))))


def outputs(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, height, width, in_features], [3, 3, in_features, features] -> [batch, *geometry.size, features]."""
    tiles, (height, width) = _tiles(geometry), geometry.size
    batch, features = inputs.shape[0], kernel.shape[-1]
    points = _multiply(_input_points(inputs, geometry), _kernel_points(kernel), (2, 1))
    points = points.reshape(SEEN, SEEN, batch, *tiles, features)
    columns = jnp.stack(_combine(OUTPUTS, list(points)), axis=4).reshape(SEEN, batch, tiles[0], -1, features)
    rows = jnp.stack(_combine(OUTPUTS, list(columns)), axis=2)
    return rows.reshape(batch, TILE * tiles[0], -1, features)[:, :height, :width]


def input_gradient(cotangent: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """[batch, *geometry.size, features], [3, 3, in_features, features] -> the shape of the inputs."""
    tiles, (batch, height, width, in_features) = _tiles(geometry), geometry.inputs
    points = _multiply(_cotangent_points(cotangent, geometry), _kernel_points(kernel), (2, 2))
    points = points.reshape(SEEN, SEEN, batch, *tiles, in_features)
    (top, _), (left, _) = geometry.padding
    columns = _overlapping(_combine(INPUTS.T, list(points)), 3)
    columns = lax.slice_in_dim(columns, left, left + width, axis=3)
    rows = _overlapping(_combine(INPUTS.T, list(columns)), 1)
    return lax.slice_in_dim(rows, top, top + height, axis=1)


def _overlapping(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """What each of the six inputs of a tile gets, added up where tiles overlap: 4 * (tiles + 1) inputs along `axis`."""

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
    points = _multiply(_input_points(inputs, geometry), _cotangent_points(cotangent, geometry), (1, 1))
    points = points.reshape(SEEN, SEEN, *geometry.kernel[2:])
    columns = jnp.stack(_combine(KERNEL.T, list(points)), axis=1)
    return jnp.stack(_combine(KERNEL.T, list(columns)))


WINOGRAD = Formulation(outputs, input_gradient, kernel_gradient)
