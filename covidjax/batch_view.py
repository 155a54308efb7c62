"""The first batch of a run as the network sees it, as a picture in the workdir."""

import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from covidjax import files, overlays
from covidjax.data.examples import Examples
from covidjax.data.order import batch_rows
from covidjax.train.step import Recipe, augmented

NAME = "batch.jpg"
MAX_SHOWN, ACROSS = 12, 6
CELL_SIDE = 160
LETTERS = 14


def write_batch(
    workdir: Path, recipe: Recipe, examples: Examples, targets: np.ndarray, *, seed: int, batch_size: int
) -> None:
    """Writes batch.jpg: images of the first batch as its step changes them, with the borders of their masks.

    targets: labels [n] int32, whose names stand below the images, or masks [n, height, width] uint8.
    The description is the comment of the file. Raises UserError where the file cannot be written.
    """
    indices, _ = batch_rows(seed, 0, examples.turns(), batch_size)
    inputs, moved = seen(recipe, {"image": examples.images[indices], "label": targets[indices]}, seed)
    masked = moved.ndim > 1
    shown = min(len(indices), MAX_SHOWN)
    low, high = float(inputs[:shown].min()), float(inputs[:shown].max())
    gray = np.rint(255 * (inputs[:shown] - low) / max(high - low, 1e-9)).astype(np.uint8)
    cells = [
        _masked(image, target) if masked else _labelled(image, examples.classes[target])
        for image, target in zip(gray, moved, strict=False)
    ]
    what = f"{shown} of the {len(indices)} images of the first batch, augmented and after preprocessing"
    grays = f"values from {low:.2f} (black) to {high:.2f} (white)"
    outlines = "; lines: borders of the masks, moved with their images" if masked else ""
    content = io.BytesIO()
    _grid(cells).save(content, format="jpeg", quality=88, subsampling=0, comment=f"{what}; {grays}{outlines}.")
    files.write_bytes(workdir / NAME, content.getvalue())


def seen(recipe: Recipe, batch: dict[str, np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the network takes in the first step of a run, and what it is held against.

    batch: {'image': [batch, height, width, channels] uint8, 'label': [batch] or [batch, height, width]}
    -> [batch, height, width, network's channels] float32, and labels or masks, moved with their images.
    """
    augment_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))  # as in `train.step.step_keys`
    alone = dataclasses.replace(recipe, axis=None)

    @jax.jit
    def take(key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        images, targets = augmented(key, batch, alone)
        inputs = recipe.preprocessing(images)
        return (inputs[0] if recipe.preprocessing.inside else inputs).astype(jnp.float32), targets

    inputs, targets = take(augment_key, batch)
    return np.asarray(inputs), np.asarray(targets)


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An enlarged image with the borders of its mask: [height, width, 3] uint8."""
    return overlays.paint(overlays.enlarge(image, CELL_SIDE), overlays.enlarge(mask, CELL_SIDE), opacity=0.0)


def _labelled(image: np.ndarray, label: str) -> np.ndarray:
    """An enlarged image above the name of its label: [height, width, 3] uint8."""
    picture = overlays.as_rgb(overlays.enlarge(image, CELL_SIDE))
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + LETTERS + 6), overlays.PAPER)
    canvas.paste(Image.fromarray(picture), (0, 0))
    font = ImageFont.load_default(LETTERS)
    ImageDraw.Draw(canvas).text((0, height + 3 + LETTERS // 2), label, overlays.INK, font, anchor="lm")
    return np.asarray(canvas)


def _grid(cells: list[np.ndarray]) -> Image.Image:
    height, width = cells[0].shape[:2]
    down = -(-len(cells) // ACROSS)
    across = -(-len(cells) // down)  # rows as full as they can be
    pitch = width + overlays.GAP, height + overlays.GAP
    size = across * pitch[0] - overlays.GAP, down * pitch[1] - overlays.GAP
    canvas = Image.new("RGB", size, overlays.PAPER)
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
