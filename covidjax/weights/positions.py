"""Embeddings of positions for another size of images, resized as the code does that published them."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from covidjax.weights.load import Entry


@dataclasses.dataclass(frozen=True)
class Way:
    """How PyTorch's `interpolate(mode='bicubic')` is called: see there."""

    align_corners: bool = False
    antialias: bool = False


# by the name of the tensor: torchvision `interpolate_embeddings`, timm `resample_abs_pos_embed`, transformers `dinov2`
WAYS = {
    "encoder.pos_embedding": Way(align_corners=True),
    "pos_embed": Way(antialias=True),
    "embeddings.position_embeddings": Way(),
}


def fitted(
    entries: Collection[Entry], leaves: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], str]:
    """The tensors, of which one of square positions has the shape of its array; and in words what was done, or ''.

    leaves: shapes of the arrays by path. Between networks of our own it is resized as transformers does.
    """
    for entry in entries:
        found = tensors.get(entry.source)
        if not entry.path.endswith("/position") or found is None or found.shape == leaves[entry.path].shape:
            continue
        before, after = (math.isqrt(shape[1] - 1) for shape in (found.shape, leaves[entry.path].shape))
        if (before**2, after**2) != (found.shape[1] - 1, leaves[entry.path].shape[1] - 1):
            continue  # not square: the shapes are told
        way = WAYS.get(entry.source, Way())
        told = f"embeddings of {before} x {before} positions resized to {after} x {after}, bicubic"
        return {**tensors, entry.source: resized(found, after, way)}, told
    return dict(tensors), ""


def resized(embeddings: np.ndarray, side: int, way: Way) -> np.ndarray:
    """embeddings: [1, 1 + before * before, features], the class token's first -> [1, 1 + side * side, features]."""
    before, features = math.isqrt(embeddings.shape[1] - 1), embeddings.shape[2]
    matrix = _bicubic(before, side, way)
    grid = embeddings[0, 1:].reshape(before, before, features).astype(np.float64)
    grid = np.einsum("hwf,ih,jw->ijf", grid, matrix, matrix).reshape(1, -1, features)
    return np.concatenate([embeddings[:, :1], grid.astype(embeddings.dtype)], 1)


def _bicubic(before: int, after: int, way: Way) -> np.ndarray:
    """The part of each of `before` places in each of `after`: [after, before]."""
    if way.align_corners:
        centres = np.arange(after) * ((before - 1) / max(after - 1, 1))
    else:
        centres = (np.arange(after) + 0.5) * before / after - 0.5
    if way.antialias:  # PyTorch takes Pillow's kernel there, as wide as what a place stands for
        weights = _kernel((np.arange(before) - centres[:, None]) / max(before / after, 1), -0.5)
        return weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((after, before))
    for offset in (-1, 0, 1, 2):
        taps = np.floor(centres).astype(int) + offset
        np.add.at(matrix, (np.arange(after), np.clip(taps, 0, before - 1)), _kernel(centres - taps, -0.75))
    return matrix


def _kernel(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, cubic convolution."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return np.where(x <= 1, near, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))
