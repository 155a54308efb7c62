"""Pictures of masks, and of maps of where a network looks, over the images that they belong to."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from covidjax.tasks.base import RESEARCH_USE

# Okabe and Ito's, the strongest on gray images first: distinct for every kind of sight. More classes take turns.
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
OPACITY = 0.35
ERRORS = (("missed", "#cc79a7"), ("found where nothing is", "#d55e00"), ("another class", "#f0e442"))
DARKENED = 0.6  # what is left of an image below its errors
HEAT = 0.7  # opacity of the largest value of a map
GAP = 6
STRIP = 22  # height of the line of text below a picture
LETTERS = 12  # height of its letters
INK, PAPER = "#1d1d1f", "#ffffff"


def color(class_id: int) -> str:
    """The colour of a class, as '#rrggbb'; the background, class 0, has none."""
    return COLORS[(class_id - 1) % len(COLORS)]


def border(mask: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour of a lower class: [height, width] uint8 -> [height, width] bool."""
    padded = np.pad(mask, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.any([mask > other for other in around], axis=0)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """[height, width, 1 or 3] uint8 -> [height, width, 3] uint8."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def paint(image: np.ndarray, mask: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """An image with each class in its colour, the borders opaque.

    image: [height, width, 1 or 3] uint8; mask: [height, width] uint8 class ids -> [height, width, 3] uint8.
    opacity: of the area within the borders.
    """
    painted = as_rgb(image).astype(np.float32)
    edge = border(mask)
    for class_id in np.unique(mask[mask != 0]):
        own = mask == class_id
        cover = np.where(own & edge, 1.0, np.where(own, opacity, 0.0))[..., None]
        painted = painted * (1 - cover) + cover * np.array(ImageColor.getrgb(color(int(class_id))), np.float32)
    return np.rint(painted).astype(np.uint8)


def disagreement(image: np.ndarray, mask: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """An image, darkened, with the pixels where a prediction differs from its mask, in the colours of `ERRORS`.

    image: [height, width, 1 or 3] uint8; mask, predicted: [height, width] uint8 class ids -> [height, width, 3] uint8.
    """
    shown = (DARKENED * as_rgb(image)).astype(np.uint8)
    kinds = (mask != 0) & (predicted == 0), (mask == 0) & (predicted != 0), (mask != 0) & (predicted != 0)
    for (_, hue), kind in zip(ERRORS, kinds, strict=True):
        shown[kind & (mask != predicted)] = ImageColor.getrgb(hue)
    return shown


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Pictures of the same height next to each other, with white between: [height, sum of widths, 3] uint8."""
    gap = np.full((len(pictures[0]), GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, as_rgb(picture))]
    return np.concatenate(parts[1:], axis=1)


def enlarge(array: np.ndarray, side: int) -> np.ndarray:
    """Every pixel of an image or mask as a square, by the least whole factor that brings the longer side to `side`."""
    factor = max(1, -(-side // max(array.shape[:2])))
    return np.repeat(np.repeat(array, factor, axis=0), factor, axis=1)


def heat(image: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """An image with what a map has above 0 in one colour, the stronger the more opaque; the largest value most.

    image: [height, width, 1 or 3] uint8; map_: [rows, columns] float, enlarged bilinearly -> [height, width, 3] uint8.
    """
    height, width = image.shape[:2]
    mass = np.maximum(map_, 0).astype(np.float32)
    large = np.asarray(Image.fromarray(mass).resize((width, height), Image.Resampling.BILINEAR))
    cover = HEAT * (large / max(float(large.max()), np.finfo(np.float32).tiny))[..., None]
    hue = np.array(ImageColor.getrgb(COLORS[0]), np.float32)
    return np.rint(as_rgb(image) * (1 - cover) + cover * hue).astype(np.uint8)


def beside_heat(image: np.ndarray, map_: Sequence[Sequence[float]] | None) -> np.ndarray:
    """An image beside itself with the `heat` of a map; alone without one."""
    return image if map_ is None else side_by_side(image, heat(image, np.array(map_, np.float32)))


def with_caption(picture: np.ndarray, text: str) -> Image.Image:
    """A picture [height, width, 3] uint8 above a line with a text and the use."""
    canvas, draw, font = _with_strip(picture)
    draw.text((4, len(picture) + STRIP // 2), f"{RESEARCH_USE}   {text}", INK, font, anchor="lm")
    return canvas


def _with_strip(
    picture: np.ndarray,
) -> tuple[Image.Image, ImageDraw.ImageDraw, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + STRIP), PAPER)
    canvas.paste(Image.fromarray(picture), (0, 0))
    return canvas, ImageDraw.Draw(canvas), ImageFont.load_default(LETTERS)


def with_legend(picture: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """A picture above a line that names the classes, but for the background, by their colours, and the use.

    picture: [height, width, 3] uint8.
    """
    height, (canvas, draw, font) = len(picture), _with_strip(picture)
    draw.text((4, height + STRIP // 2), RESEARCH_USE, INK, font, anchor="lm")
    left = 4 + draw.textlength(RESEARCH_USE, font) + 14
    for class_id, name in enumerate(classes[1:], start=1):
        top = height + (STRIP - LETTERS) // 2
        draw.rectangle((left, top, left + LETTERS, top + LETTERS), color(class_id))
        draw.text((left + LETTERS + 4, height + STRIP // 2), name, INK, font, anchor="lm")
        left += LETTERS + 4 + draw.textlength(name, font) + 12
    return canvas


def values(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """What a mask is written as: 0 and 255 for two classes, else the class ids."""
    return 255 * mask if num_classes == 2 else mask
