import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covidjax.errors import UserError
from covidjax.evaluate.tiles import Tiling, blended_logits, windows

RECEPTIVE_FIELD = 11  # of `pooling_network`, at most: 1 + 3 + 1 pixels beyond a pixel on either side
SIDES = [(1, 1), (15, 9), (17, 40), (64, 31)]


@functools.cache
def pooling_network(seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Two convolutions at full resolution, one at half of it in between, like a small U-Net."""
    keys = jax.random.split(jax.random.key(seed), 3)
    kernels = [
        jax.random.normal(key, (3, 3, *shape)) for key, shape in zip(keys, [(1, 2), (2, 2), (2, 3)], strict=True)
    ]

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jax.jit
    def network(image: jax.Array) -> jax.Array:
        x = convolve(image[None].astype(jnp.float32) / 255, kernels[0])
        padding = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
        pooled = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), padding)
        wide = jnp.repeat(jnp.repeat(convolve(pooled, kernels[1]), 2, 1), 2, 2)
        return convolve(x + wide[:, : x.shape[1], : x.shape[2]], kernels[2])[0]

    return lambda image: np.asarray(network(image))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 1), np.uint8)


@pytest.mark.parametrize("length", [1, 8, 31, 32, 33, 64, 95, 200])
@pytest.mark.parametrize("tiling", [Tiling(32, 0, 8), Tiling(32, 7, 4), Tiling(32, 16, 8), Tiling(32, 20, 1)])
def test_weights_sum_to_one_and_are_zero_where_a_tile_does_not_see(length: int, tiling: Tiling) -> None:
    total, overlap = np.zeros(length), tiling.overlap // 2
    spans = windows(length, tiling)
    for start, stop, weights in spans:
        assert start % tiling.alignment == 0
        assert len(weights) == stop - start <= tiling.tile
        assert start == 0 or not weights[:overlap].any()
        assert stop == length or not weights[len(weights) - overlap :].any()
        total[start:stop] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
    assert all(stop - start == tiling.tile for start, stop, _ in spans[:-1])


def test_weights_pass_smoothly_from_tile_to_tile() -> None:
    (_, stop, first), (start, *_) = windows(40, Tiling(32, 16, 8))
    shared = first[start:stop]
    assert np.all(np.diff(shared) <= 1e-12)
    assert np.count_nonzero((shared > 0) & (shared < 1)) == 8  # half as many as the overlap
    assert np.abs(np.diff(shared)).max() < 0.25


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("tiling", [Tiling(24, RECEPTIVE_FIELD, 2), Tiling(32, 16, 4)])
def test_tiles_equal_the_image_in_one_where_their_overlap_suffices(height: int, width: int, tiling: Tiling) -> None:
    network, image = pooling_network(), noise(height, width)
    bands = list(blended_logits(network, image, tiling))
    np.testing.assert_allclose(np.concatenate(bands), network(image), rtol=0, atol=1e-4)
    assert all(0 < len(band) <= tiling.tile for band in bands)


# Of the last the step is odd: every second tile pools other pixels together.
@pytest.mark.parametrize("tiling", [Tiling(24, 0, 2), Tiling(24, 4, 2), Tiling(25, RECEPTIVE_FIELD, 1)])
def test_overlap_below_the_receptive_field_and_tiles_off_the_grid_of_the_pooling_are_seen(tiling: Tiling) -> None:
    network, image = pooling_network(), noise(64, 31)
    blended = np.concatenate(list(blended_logits(network, image, tiling)))
    assert np.abs(blended - network(image)).max() > 1e-2


@pytest.mark.parametrize(
    ("tile", "overlap", "expected"),
    [
        (100, 10, "the tile is 100 pixels: allowed are multiples of 32"),
        (0, 0, "the tile is 0 pixels"),
        (-32, 0, "the tile is -32 pixels"),
        (128, -1, "the overlap of tiles of 128 is -1 pixels: allowed are 0 to 64"),
        (128, 65, "the overlap of tiles of 128 is 65 pixels: allowed are 0 to 64"),
    ],
)
def test_impossible_tiles_are_refused(tile: int, overlap: int, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Tiling(tile, overlap)
    assert Tiling(128, 64).step == 32  # the greatest overlap that is named is allowed
