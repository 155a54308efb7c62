"""The pictures of a page's blocks."""

import functools

import numpy as np

from covidjax.report import figures
from covidjax.tasks import pictures
from covidjax.tasks.page import Histogram, Picture, Reliability

RELIABILITY_BINS = 15  # those of metrics.classification.expected_calibration_error
PANEL_SIDE = 160  # least side of an enlarged image below its mask, so that borders stay thin


@functools.singledispatch
def draw(block: object) -> bytes:
    """The image of a block, as the bytes of a file."""
    raise TypeError(f"{type(block).__name__} is not drawn")


@draw.register
def _(block: Reliability) -> bytes:
    edges = np.linspace(0.0, 1.0, RELIABILITY_BINS + 1)
    return figures.reliability_diagram(block.confidences, block.correct, edges)


@draw.register
def _(block: Histogram) -> bytes:
    return figures.histogram(block.values, block.name, block.unit)


@draw.register
def _(block: Picture) -> bytes:
    if not block.masks:
        return figures.picture(block.image)
    below = pictures.enlarge(block.image, PANEL_SIDE)
    panels = [pictures.paint(below, pictures.enlarge(mask, PANEL_SIDE)) for mask in block.masks]
    return figures.picture(pictures.side_by_side(*panels), max_side=len(panels) * figures.JPEG_MAX_SIDE)
