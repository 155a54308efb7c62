"""The first batch of a run as the network sees it, as a picture in the workdir."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from covidjax import files
from covidjax.tasks import pictures

NAME = "batch.jpg"
MAX_SHOWN, ACROSS = 12, 6
CELL_SIDE = 160
LETTERS = 14


def write_batch(workdir: Path, inputs: np.ndarray, labels: Sequence[str | np.ndarray], batch_size: int) -> None:
    """Writes batch.jpg: images of the first batch as its step changes them, with the borders of their masks.

    inputs: [n, height, width, channels] float32, as the network takes them; labels: of each image a text that
    stands below it, or a mask [height, width] uint8; batch_size: how many images the batch had, n of which are shown,
    up to MAX_SHOWN.
    The description is the comment of the file. Raises UserError where the file cannot be written.
    """
    shown = min(len(inputs), MAX_SHOWN)
    low, high = float(inputs[:shown].min()), float(inputs[:shown].max())
    gray = np.rint(255 * (inputs[:shown] - low) / max(high - low, 1e-9)).astype(np.uint8)
    cells = [
        _labelled(image, label) if isinstance(label, str) else _masked(image, label)
        for image, label in zip(gray, labels, strict=False)
    ]
    what = f"{shown} of the {batch_size} images of the first batch, augmented and after preprocessing"
    grays = f"values from {low:.2f} (black) to {high:.2f} (white)"
    outlines = "; lines: borders of the masks, moved with their images" if not isinstance(labels[0], str) else ""
    content = io.BytesIO()
    _grid(cells).save(content, format="jpeg", quality=88, subsampling=0, comment=f"{what}; {grays}{outlines}.")
    files.write_bytes(workdir / NAME, content.getvalue())


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An enlarged image with the borders of its mask: [height, width, 3] uint8."""
    return pictures.paint(pictures.enlarge(image, CELL_SIDE), pictures.enlarge(mask, CELL_SIDE), opacity=0.0)


def _labelled(image: np.ndarray, label: str) -> np.ndarray:
    """An enlarged image above the name of its label: [height, width, 3] uint8."""
    picture = pictures.as_rgb(pictures.enlarge(image, CELL_SIDE))
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + LETTERS + 6), pictures.PAPER)
    canvas.paste(Image.fromarray(picture), (0, 0))
    font = ImageFont.load_default(LETTERS)
    ImageDraw.Draw(canvas).text((0, height + 3 + LETTERS // 2), label, pictures.INK, font, anchor="lm")
    return np.asarray(canvas)


def _grid(cells: list[np.ndarray]) -> Image.Image:
    height, width = cells[0].shape[:2]
    down = -(-len(cells) // ACROSS)
    across = -(-len(cells) // down)  # rows as full as they can be
    pitch = width + pictures.GAP, height + pictures.GAP
    size = across * pitch[0] - pictures.GAP, down * pitch[1] - pictures.GAP
    canvas = Image.new("RGB", size, pictures.PAPER)
    for number, cell in enumerate(cells):
        canvas.paste(Image.fromarray(cell), (number % across * pitch[0], number // across * pitch[1]))
    return canvas


def read_batch(workdir: Path) -> tuple[bytes, str] | None:
    """The file that `write_batch` wrote and its description, or None where there is none."""
    path = workdir / NAME
    if not path.is_file():
        return None
    content = path.read_bytes()
    comment = Image.open(io.BytesIO(content)).info.get("comment", b"")
    return content, comment.decode() if isinstance(comment, bytes) else comment
