"""Random changes: by SciPy and Pillow, each image in its own way, masks with their image, decided by the key alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from covidjax.config import default_config
from covidjax.data.augment import Augmentation, augment, bilinear, nearest

EVERYTHING = Augmentation(rotate=40.0, shift=0.3, scale=0.4, flip=True, brightness=0.5, contrast=0.9, sharpen=0.8)
SHAPE = (6, 20, 27, 2)

augment_compiled = jax.jit(augment, static_argnums=2)


def draw_images(shape: tuple[int, ...] = SHAPE) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape), jnp.float32)


def changed(augmentation: Augmentation, images: jax.Array, seed: int = 0) -> np.ndarray:
    return np.asarray(augment_compiled(jax.random.key(seed), images, augmentation)[0])


def drawn(seed: int, number: int, spread: float, batch_size: int) -> np.ndarray:
    """The values that the module draws: angle, size, shift of rows, shift of columns are numbers 0 to 3."""
    keys = jax.random.split(jax.random.split(jax.random.key(seed))[0], 5)
    return np.asarray(jax.random.uniform(keys[number], (batch_size, 1, 1), minval=-spread, maxval=spread)).ravel()


def move(image: np.ndarray, matrix: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """The image about its centre: the place p of the result shows `matrix @ (p - centre) + centre - shift`."""
    center = (np.array(image.shape[:2]) - 1) / 2
    offset = center - matrix @ center - np.array(shift)
    channels = [
        ndimage.affine_transform(channel, matrix, offset, order=1, mode="nearest") for channel in image.T.swapaxes(1, 2)
    ]
    return np.stack(channels, -1)


def test_nothing_is_on_by_default_and_ranges_of_zero_change_nothing() -> None:
    assert Augmentation(**default_config().augment.to_dict()) == Augmentation()
    assert not Augmentation().moves
    images = draw_images()
    masks = (images[..., 0] > 100).astype(jnp.uint8)
    found, found_masks = augment_compiled(jax.random.key(0), images, Augmentation(), masks)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(found_masks, masks)


@pytest.mark.parametrize("shape", [(9, 14, 3), (1, 5, 1), (6, 1, 2)])
def test_bilinear_and_nearest_equal_scipy_inside_and_outside(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, shape).astype(np.float32)
    rows, columns = (generator.uniform(-3, extent + 2, (40, 30)).astype(np.float32) for extent in shape[:2])
    rows[0], columns[0] = shape[0] - 1, np.linspace(0, shape[1] - 1, 30)  # the last row itself
    found = bilinear(*map(jnp.asarray, (image, rows, columns)))
    for channel in range(shape[2]):
        expected = ndimage.map_coordinates(
            image[..., channel].astype(np.float64), [rows, columns], order=1, mode="nearest"
        )
        np.testing.assert_allclose(found[..., channel], expected, atol=255e-5)
    ids = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape[:2])
    expected = ndimage.map_coordinates(ids, [rows[1:], columns[1:]], order=0, mode="nearest")
    np.testing.assert_array_equal(nearest(*map(jnp.asarray, (ids, rows[1:], columns[1:]))), expected)


def test_rotation_equals_scipy_and_all_movements_are_one_map() -> None:
    images = draw_images()
    ranges = (np.pi / 6, 0.4, 0.2 * SHAPE[1], 0.2 * SHAPE[2])
    parameters = [drawn(6, number, spread, len(images)) for number, spread in enumerate(ranges)]
    assert parameters[1].min() < 0 < parameters[1].max()
    turned = changed(Augmentation(rotate=30.0), images, seed=6)
    moved = changed(Augmentation(rotate=30.0, shift=0.2, scale=0.4), images, seed=6)
    assert len({round(float(angle), 3) for angle in parameters[0]}) == len(images)
    for image, rotated, result, angle, size, *by in zip(np.asarray(images), turned, moved, *parameters, strict=True):
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = ndimage.rotate(image, -np.degrees(angle), reshape=False, order=1, mode="nearest")
        np.testing.assert_allclose(rotated, expected, atol=0.02)
        np.testing.assert_allclose(result, move(image, matrix / (1 + size), (by[0], by[1])), atol=0.02)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = draw_images((200, 5, 6, 1))
    found = changed(Augmentation(flip=True), images)
    same, mirrored = (
        np.all(np.isclose(found, other, atol=1e-3), (1, 2, 3)) for other in (images, np.flip(images, axis=2))
    )
    assert np.all(same ^ mirrored)
    assert 70 < mirrored.sum() < 130


def test_grey_levels_follow_brightness_and_contrast() -> None:
    images = np.asarray(100 + draw_images() / 10)  # far from both ends
    mean = images.mean((1, 2, 3), keepdims=True)
    for augmentation, centre in ((Augmentation(brightness=0.5), 0.0), (Augmentation(contrast=0.5), mean)):
        found = changed(augmentation, jnp.asarray(images))
        factors = (found.std((1, 2, 3)) / images.std((1, 2, 3)))[:, None, None, None]
        np.testing.assert_allclose(found - centre, (images - centre) * factors, atol=1e-3)
        assert np.all((factors > 0.5) & (factors < 1.5))
        assert np.ptp(factors) > 0.2


def test_sharpening_is_that_of_pillow() -> None:
    images = np.asarray(draw_images((6, 12, 17, 3)))
    masks = jnp.asarray(images[..., 0], jnp.uint8)
    found, same = augment_compiled(jax.random.key(3), jnp.asarray(images), Augmentation(sharpen=0.9), masks)
    np.testing.assert_array_equal(same, masks)
    found = np.asarray(found)
    key = jax.random.fold_in(jax.random.split(jax.random.key(3))[1], 2)
    factors = np.asarray(jax.random.uniform(key, (6, 1, 1, 1), minval=0.1, maxval=1.9)).ravel()
    assert factors.min() < 0.8 and factors.max() > 1.2
    for image, result, factor in zip(images, found, factors, strict=True):
        picture = ImageEnhance.Sharpness(Image.fromarray(image.astype(np.uint8))).enhance(float(factor))
        # Pillow rounds the smoothed image to whole numbers, and the result down.
        np.testing.assert_allclose(result, np.asarray(picture, np.float32), atol=1.5)
    assert np.abs(found - images).max() > 50


def test_sharpening_leaves_the_other_changes_their_random_numbers() -> None:
    flat = jnp.broadcast_to(50.0 + jnp.arange(SHAPE[0])[:, None, None, None], SHAPE)  # nothing to sharpen
    others = Augmentation(brightness=0.5, contrast=0.9)
    sharpened = changed(dataclasses.replace(others, sharpen=0.8), flat)  # by another program, which may round otherwise
    np.testing.assert_allclose(changed(others, flat), sharpened, rtol=1e-6)
    key = jax.random.split(jax.random.split(jax.random.key(0))[1])[0]
    factors = jax.random.uniform(key, (SHAPE[0], 1, 1, 1), minval=0.5, maxval=1.5)
    np.testing.assert_array_equal(changed(Augmentation(brightness=0.5), flat), flat * factors)


def test_parts_of_a_batch_on_a_mapped_axis_change_as_in_the_whole() -> None:
    images, key = draw_images(), jax.random.key(1)
    parts = images.reshape(2, 3, *SHAPE[1:])
    mapped = jax.vmap(lambda part: augment(key, part, EVERYTHING, axis="data")[0], axis_name="data")
    found = jax.jit(mapped)(parts).reshape(SHAPE)
    np.testing.assert_allclose(found, changed(EVERYTHING, images, seed=1), atol=0.01)


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_masks_move_with_their_image(along: str) -> None:
    stripes = np.random.default_rng(2).integers(0, 2, (64, 40))
    masks = np.repeat(stripes[:, :, None], 40, 2) if along == "rows" else np.repeat(stripes[:, None, :], 40, 1)
    images = jnp.asarray(masks[..., None], jnp.float32)
    # Along one axis the value between two pixels is over one half exactly where the nearer pixel is one.
    movement = Augmentation(shift=0.3, scale=0.3, flip=True)
    found, found_masks = augment_compiled(jax.random.key(8), images, movement, jnp.asarray(masks, jnp.int32))
    assert found_masks is not None
    assert found_masks.dtype == jnp.int32
    certain = np.abs(np.asarray(found)[..., 0] - 0.5) > 1e-3
    np.testing.assert_array_equal((np.asarray(found)[..., 0] > 0.5)[certain], np.asarray(found_masks)[certain] == 1)
    assert certain.mean() > 0.9
    assert not np.array_equal(found_masks, masks)


def test_the_key_alone_decides_and_values_stay_in_their_range() -> None:
    black, white = (jnp.full((64, 20, 27, 1), value) for value in (0.0, 255.0))
    images = jnp.concatenate([black, white, draw_images((64, 20, 27, 1))])
    first, again, other = (changed(EVERYTHING, images, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 0 <= first.min() < first.max() <= 255 * (1 + 1e-6)  # the weights of a place sum to one up to rounding


def test_each_change_draws_for_itself_whether_it_is_made_as_often_as_its_probability_says() -> None:
    count, columns = 4000, jnp.arange(9.0)
    ramp = jnp.broadcast_to(100 + columns[None, None, :, None] + 3 * jnp.arange(5.0)[:, None, None], (count, 5, 9, 1))
    affine = Augmentation(affine_probability=0.75, rotate=10.0), Augmentation(affine_probability=0.75, zoom=0.1)
    lighting = (
        Augmentation(lighting_probability=0.75, brightness=0.2),
        Augmentation(lighting_probability=0.75, contrast=0.2),
    )
    made = {
        augmentation: ~np.all(np.isclose(changed(augmentation, ramp), ramp, atol=1e-3), (1, 2, 3))
        for augmentation in (*affine, *lighting)
    }
    for changes in made.values():
        assert abs(changes.mean() - 0.75) < 0.03  # four standard errors of 4000 draws
    for one, other in (affine, lighting):  # as of independent draws
        assert abs((made[one] & made[other]).mean() - 0.75**2) < 0.035
    both = changed(Augmentation(lighting_probability=0.75, brightness=0.2, contrast=0.2), ramp)
    still = np.all(np.isclose(both, ramp, atol=1e-3), (1, 2, 3)).mean()
    assert abs(still - 0.25**2) < 0.02


def test_zoom_shows_a_part_of_the_image_of_ten_elevenths_to_all_of_its_sides() -> None:
    count = 2000
    columns = jnp.broadcast_to(jnp.linspace(0, 100, 41)[None, None, :, None], (count, 41, 41, 1))
    rows = columns.swapaxes(1, 2)
    ends = []
    for picture, axis in ((columns, 2), (rows, 1)):
        found = changed(Augmentation(zoom=0.1), picture).mean(3 - axis)[..., 0]
        assert found.min() >= -1e-3 and found.max() <= 100.001
        ends.append((found[:, 0], found[:, -1]))
    sides = [(last - first) / 100 for first, last in ends]
    np.testing.assert_allclose(sides[0], sides[1], atol=2e-3)
    assert abs(sides[0].min() - 1 / 1.1) < 2e-3 and abs(sides[0].max() - 1) < 2e-3
    assert abs(np.mean(1 / sides[0]) - 1.05) < 5e-3
    for first, last in ends:  # the rest of the side lies evenly on both sides of the part
        free = 100 - (last - first) > 1
        places = first[free] / (100 - (last - first))[free]
        assert abs(places.mean() - 0.5) < 0.03 and abs(places.std() - 12**-0.5) < 0.03
