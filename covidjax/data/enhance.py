"""Contrast-limited adaptive histogram equalisation of decoded images, `config.dataset.enhancement`.

Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994, as scikit-image has it.
"""

from importlib import metadata

import numpy as np
from skimage.exposure import equalize_adapthist

ENHANCEMENTS = ("none", "clahe")
VERSION = f"scikit-image {metadata.version('scikit-image')}"
TILES = 8  # along a side
SMALLEST_TILE = 16  # pixels a side: of fewer pixels a histogram is so thin that its limit no longer limits anything
CLIP_LIMIT = 0.01  # of a tile's pixels in one of the 256 bins: 2.6 times what a flat histogram has there


def equalised(luminance: np.ndarray) -> np.ndarray:
    """Grey levels [height, width] uint8 or uint16 -> uint8 with the contrast of each part of the image evened out.

    The result spans 0 to 255, whatever the range of the image; one of a single grey level stays as it is.
    """
    if luminance.min() == luminance.max():
        return (luminance // (257 if luminance.dtype == np.uint16 else 1)).astype(np.uint8)
    tile = [max(length // TILES, SMALLEST_TILE) for length in luminance.shape]
    equal = equalize_adapthist(luminance, kernel_size=tile, clip_limit=CLIP_LIMIT)
    return np.rint(255 * equal).astype(np.uint8)
