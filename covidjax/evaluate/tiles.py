"""Prediction of large images in tiles that overlap, put together so that no seam is left."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from covidjax.errors import UserError

# Maps at a 32nd of the resolution are the coarsest here: tiles that begin on their grid have it where the image has it.
ALIGNMENT = 32

Network = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Square tiles of `tile` pixels, of which neighbours share `overlap` pixels and those over which they are blended.

    In what neighbours share, the outer half of the overlap on either side has no weight: that is where a tile does not
    see what lies beyond its edge. Between lies `blend`, over which the weight passes smoothly from tile to tile. So
    where the receptive field of the network is no wider than the overlap, the result is that of the image in one. A
    network that pools over the whole image or attends to all of it (DeepLabV3, `model.attention`) has no such field.
    alignment: tiles begin at multiples of it.
    """

    tile: int
    overlap: int
    alignment: int = ALIGNMENT

    def __post_init__(self) -> None:
        if self.tile < self.alignment or self.tile % self.alignment:
            raise UserError(f"the tile is {self.tile} pixels: allowed are multiples of {self.alignment}")
        if self.overlap < 0 or self.step < self.alignment:
            most = (2 * (self.tile - self.alignment) + 1) // 3
            raise UserError(f"the overlap of tiles of {self.tile} is {self.overlap} pixels: allowed are 0 to {most}")

    @property
    def blend(self) -> int:
        """Pixels over which two tiles are blended."""
        return self.overlap // 2

    @property
    def step(self) -> int:
        """From the beginning of a tile to that of the next."""
        return (self.tile - self.overlap - self.blend) // self.alignment * self.alignment


def windows(length: int, tiling: Tiling) -> list[tuple[int, int, np.ndarray]]:
    """Beginning, end and weights of the tiles along a side of `length` pixels; in each pixel the weights sum to 1.

    All tiles but the last have the same size; that one ends with the image.
    """
    last = max(0, -(-(length - tiling.tile) // tiling.alignment) * tiling.alignment)
    spans = [(start, min(start + tiling.tile, length)) for start in (*range(0, last, tiling.step), last)]
    weights = [_weights(start, stop, length, tiling) for start, stop in spans]
    total = np.zeros(length)
    for (start, stop), weight in zip(spans, weights, strict=True):
        total[start:stop] += weight
    return [(*span, weight / total[slice(*span)]) for span, weight in zip(spans, weights, strict=True)]


def _weights(start: int, stop: int, length: int, tiling: Tiling) -> np.ndarray:
    inside = np.arange(stop - start)
    weights = np.ones(stop - start)
    if start > 0:
        weights *= _ramp(inside, tiling)
    if stop < length:
        weights *= _ramp(inside[::-1], tiling)
    return weights


def _ramp(distance: np.ndarray, tiling: Tiling) -> np.ndarray:
    """0 in the outer half of the overlap, then a raised cosine up to 1; distance: in pixels from the tile's edge."""
    part = (distance - tiling.overlap // 2 + 0.5) / max(tiling.blend, 1)
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(part, 0, 1)) if tiling.blend else (part > 0).astype(float)


def blended_logits(network: Network, image: np.ndarray, tiling: Tiling) -> Iterator[np.ndarray]:
    """Logits of an image in bands of rows, [rows, width, classes], from top to bottom; together they are its height.

    network: [height, width, channels] uint8 -> logits [height, width, classes] of the same height and width.
    image: [height, width, channels] uint8. No more than the rows of two tiles are kept at a time.
    """
    rows, columns = (windows(length, tiling) for length in image.shape[:2])
    unfinished = None
    for number, (top, bottom, of_rows) in enumerate(rows):
        for left, right, of_columns in columns:
            logits = network(image[top:bottom, left:right])
            if unfinished is None:
                unfinished = np.zeros((0, image.shape[1], logits.shape[-1]), logits.dtype)
            if len(unfinished) < bottom - top:
                more = np.zeros((bottom - top - len(unfinished), *unfinished.shape[1:]), logits.dtype)
                unfinished = np.concatenate([unfinished, more])
            weights = np.outer(of_rows, of_columns)[..., None].astype(logits.dtype)
            unfinished[: bottom - top, left:right] += logits * weights
        assert unfinished is not None
        finished = rows[number + 1][0] - top if number + 1 < len(rows) else len(unfinished)
        yield unfinished[:finished]
        unfinished = unfinished[finished:]
