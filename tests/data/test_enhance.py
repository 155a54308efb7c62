"""Contrast-limited adaptive histogram equalisation of decoded images."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.exposure import equalize_adapthist

from covidjax.data import phantom
from covidjax.data.picture import ImageSpec, decode_image, equalised, open_picture, own_pixels
from tests.data.images import encoded
from tests.support import small_config

SIZE = 64


def textured(size: int = SIZE) -> np.ndarray:
    """A dim, a middle and a bright stripe [size, size], each with a texture of little contrast."""
    generator = np.random.default_rng(0)
    levels = np.repeat([40.0, 120.0, 220.0], [size // 3, size // 3, size - 2 * (size // 3)])
    return np.clip(levels[None] + 3 * generator.standard_normal((size, size)), 0, 255).astype(np.uint8)


def of(pixels: np.ndarray, channels: int = 1, crop: str = "squash", size: int = SIZE) -> np.ndarray:
    return decode_image(encoded(Image.fromarray(pixels)), ImageSpec(size, channels, crop, "clahe"))


def test_contrast_is_raised_in_every_part_and_no_further_than_the_limit() -> None:
    image = textured(128)
    found, unlimited = equalised(image), 255 * equalize_adapthist(image, kernel_size=16, clip_limit=1.0)
    assert (found.dtype, found.shape, found.min(), found.max()) == (np.uint8, image.shape, 0, 255)
    for part in (np.s_[:, 10:30], np.s_[:, 55:75], np.s_[:, 95:118]):
        assert 1.5 * image[part].std() < found[part].std() < 0.5 * unlimited[part].std()


def test_within_one_tile_the_order_of_grey_levels_is_kept() -> None:
    image = np.random.default_rng(1).integers(20, 200, (16, 16)).astype(np.uint8)
    order = np.argsort(image, axis=None, kind="stable")
    assert np.all(np.diff(equalised(image).reshape(-1)[order].astype(int)) >= 0)
    assert len(np.unique(equalised(image))) > 50


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_image_of_one_grey_level_stays_as_it_is(dtype: type) -> None:
    level = 100 * (257 if dtype is np.uint16 else 1)
    assert np.all(equalised(np.full((20, 30), level, dtype)) == 100)


def test_dark_16_bit_image_keeps_levels_that_8_bits_would_lose() -> None:
    twelve_bits = np.random.default_rng(2).integers(0, 4096, (SIZE, SIZE)).astype(np.uint16)
    assert len(np.unique(decode_image(encoded(Image.fromarray(twelve_bits)), ImageSpec(SIZE, 1, "squash")))) == 17
    found = of(twelve_bits)
    assert len(np.unique(found)) > 200
    np.testing.assert_array_equal(found, of(16 * twelve_bits))
    np.testing.assert_array_equal(found.repeat(3, axis=-1), of(twelve_bits, channels=3))


def test_of_colours_the_luminance_alone_is_enhanced() -> None:
    gray = textured()
    np.testing.assert_array_equal(of(gray).repeat(3, axis=-1), of(gray, channels=3))
    luminance = (60 + gray // 3).astype(np.uint8)
    around = [np.full_like(gray, value) for value in (120, 136)]
    colours = np.asarray(Image.fromarray(np.stack([luminance, *around], axis=-1), "YCbCr").convert("RGB"))
    found = np.asarray(Image.fromarray(of(colours, channels=3)).convert("YCbCr")).astype(int)
    inside = (found[..., 0] > 20) & (found[..., 0] < 235)  # near black and white no colour is left
    assert np.abs(found[..., 0] - equalised(luminance).astype(int))[inside].max() <= 2
    assert np.abs(found[..., 1:] - [120, 136])[inside].max() <= 2
    assert inside.mean() > 0.3


def test_image_is_enhanced_at_the_size_of_the_network_and_before_the_letterbox() -> None:
    wide = textured(2 * SIZE)[:SIZE]
    small = decode_image(encoded(Image.fromarray(wide)), ImageSpec(SIZE, 1, "pad"))[..., 0]
    rows = np.flatnonzero(small.any(axis=1))
    assert 0 < len(rows) < SIZE
    found = of(wide, crop="pad")[..., 0]
    np.testing.assert_array_equal(found[rows], equalised(small[rows]))
    assert not np.delete(found, rows, axis=0).any()


def test_image_at_its_own_size_is_enhanced_as_a_whole() -> None:
    picture = open_picture(encoded(Image.fromarray(textured(80)[:50])))
    np.testing.assert_array_equal(own_pixels(picture, 1, "clahe")[..., 0], equalised(textured(80)[:50]))


@pytest.mark.parametrize("shape", [(1, 400), (1, 1), (3, 5)])
@pytest.mark.parametrize("crop", ["pad", "squash"])
def test_extreme_shapes_are_enhanced(shape: tuple[int, int], crop: str) -> None:
    pixels = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    assert of(pixels, crop=crop, size=16).shape == (16, 16, 1)


def test_phantoms_are_enhanced_too() -> None:
    settings: dict[str, Any] = {"dataset__image_size": 32, "dataset__num_images": 12}
    plain = phantom.load(small_config(**settings).dataset, "val")
    found = phantom.load(small_config(**settings, dataset__enhancement="clahe").dataset, "val")
    np.testing.assert_array_equal(found.images[..., 0], [equalised(image[..., 0]) for image in plain.images])
    assert found.fingerprint != plain.fingerprint
