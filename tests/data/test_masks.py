"""What a mask means is told by the kind of its file, and not by what occurs in it."""

import numpy as np
import pytest

from covidjax.data.formats.base import BadImageError
from covidjax.data.picture import ImageSpec, decode_pair
from tests.data.images import encoded, gray
from tests.data.written import png

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_masks_are_the_raw_samples_of_gray(bits: int) -> None:
    """Ids do not depend on which of them occur."""
    image, white = encoded(gray(7)), 2**bits - 1

    def ids(values: np.ndarray, num_classes: int) -> np.ndarray:
        return decode_pair(image, png(values[..., None], bits), "m", num_classes, ImageSpec(8, 1, "center"))[1]

    one = RANDOM.integers(0, 2, (8, 8))
    np.testing.assert_array_equal(ids(one, 2), one)
    np.testing.assert_array_equal(ids(white * one, 2), one)
    for value, expected in ((0, 0), (1, 1), (white, 1)):
        assert (ids(np.full((8, 8), value), 2) == expected).all()
    if bits > 1:
        three = RANDOM.integers(0, 3, (8, 8))
        np.testing.assert_array_equal(ids(three, 3), three)
        with pytest.raises(BadImageError, match=f"1 and {white} stand for the same class"):
            ids(np.where(one == 1, white, RANDOM.integers(0, 2, (8, 8))), 2)
        with pytest.raises(BadImageError, match=f"class ids {white} are out of range") as caught:
            ids(white * one, 3)
        assert "85" not in str(caught.value).replace(str(white), "")


def test_a_palette_of_a_mask_is_read_by_what_it_is() -> None:
    def ids(indices: np.ndarray, palette: list[int], num_classes: int = 2) -> np.ndarray:
        content = png(indices[..., None], 8, 3, palette=bytes(palette))
        return decode_pair(encoded(gray(7)), content, "m", num_classes, ImageSpec(8, 1, "center"))[1]

    one = RANDOM.integers(0, 2, (8, 8))
    black, white, red = [0, 0, 0], [255, 255, 255], [200, 0, 0]
    np.testing.assert_array_equal(ids(one, black + white), one)
    np.testing.assert_array_equal(ids(one, white + black), 1 - one)
    np.testing.assert_array_equal(ids(one, white + black + red, 3), one)
    np.testing.assert_array_equal(ids(one, white + black + red), one)  # whether or not red occurs
    ramp = [value for value in range(256) for _ in range(3)]
    np.testing.assert_array_equal(ids(255 * one, ramp), one)
    with pytest.raises(BadImageError, match="from white to black"):
        ids(255 * one, ramp[::-1])
