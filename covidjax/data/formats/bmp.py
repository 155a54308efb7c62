"""BMP: as Pillow reads it, with the indices of palettes as they are."""

import numpy as np

from covidjax.data.formats.base import BadImageError, Picture, opened


def read(content: bytes) -> Picture:
    """The picture of a BMP file. Raises BadImageError with the reason, and what Pillow raises."""
    image = opened(content, "BMP")
    pixels = np.asarray(image)
    if image.mode == "1":
        return Picture(pixels.astype(np.uint8), 1, "BMP")
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        if (highest := int(pixels.max())) >= len(colours):
            raise BadImageError(f"damaged BMP: its pixels have the palette's index {highest} of {len(colours)} colours")
        return Picture(pixels, 8, "BMP", palette=colours)
    if image.mode == "RGBA":
        return Picture(pixels[..., :3], 8, "BMP", alpha=pixels[..., 3])
    if image.mode not in ("L", "RGB"):
        raise BadImageError(f"BMP with {image.mode} pixels: save it as PNG")
    return Picture(pixels, 8, "BMP")
