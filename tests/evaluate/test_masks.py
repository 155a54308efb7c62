"""Figures of predicted masks are those of a plain computation, for any number of images in batches of any size."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from covidjax.evaluate.network import answers
from covidjax.mesh import make_mesh
from covidjax.metrics import mask_files
from covidjax.tasks.segmentation import SEGMENTATION, segmented
from tests.support import small_config

SIZE, CLASSES = 5, 3


def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks of noise; the first image has no pixel of class 2, neither true nor predicted."""
    generator = np.random.default_rng(count)
    masks = generator.integers(0, CLASSES, (count, SIZE, SIZE), np.uint8)
    logits = generator.normal(size=(count, SIZE, SIZE, CLASSES)).astype(np.float32) + 2 * np.eye(3)[masks]
    masks[0] = np.minimum(masks[0], 1)
    logits[0, ..., 2] = -9
    return logits.astype(np.float32), masks


def plain_figures(logits: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """As one would write them down, image by image."""
    overlaps, unions, losses = [], [], []
    for image, mask in zip(logits.astype(np.float64), masks, strict=True):
        guess = image.argmax(-1)
        for c in range(1, CLASSES):
            both, either = np.sum((guess == c) & (mask == c)), np.sum((guess == c) | (mask == c))
            overlaps.append(2 * both / (both + either) if either else 1.0)
            unions.append(both / either if either else 1.0)
        log_probabilities = image - np.log(np.exp(image).sum(-1, keepdims=True))
        losses.append(-np.mean(np.take_along_axis(log_probabilities, mask[..., None].astype(int), -1)))
    accuracy = np.mean(logits.argmax(-1) == masks)
    return {"loss": np.mean(losses), "accuracy": accuracy, "dice": np.mean(overlaps), "iou": np.mean(unions)}


@pytest.mark.parametrize("count", [1, 7, 9])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_every_image_counts_once_whatever_the_batch_size(count: int, batch_size: int) -> None:
    logits, masks = draw(count)
    loss = SEGMENTATION.plain_loss(small_config("unet", loss__label_smoothing=0.2).loss)

    def network(variables: None, inputs: np.ndarray) -> jax.Array:
        return jax.numpy.asarray(inputs)

    mesh = make_mesh(32)
    figures = SEGMENTATION.measure(
        answers(network, None, logits, masks, batch_size, mesh), loss, "softmax_cross_entropy"
    )
    assert figures == pytest.approx(plain_figures(logits, masks))
    predicted, counts, _ = segmented(answers(network, None, logits, masks, batch_size, mesh), loss)
    assert (predicted.dtype, predicted.shape) == (np.uint8, masks.shape)
    np.testing.assert_array_equal(predicted, logits.argmax(-1))
    assert counts[:, :, 2].sum(1).tolist() == [SIZE * SIZE] * count


def test_masks_are_saved_as_the_ids_that_they_are_under_the_stem_of_their_image(tmp_path: Path) -> None:
    masks = draw(3)[1]
    names = ("images/a.b.jpg", "images/c.png", "val/000012")
    mask_files.write_masks(tmp_path / "masks", names, masks)
    for stem, mask in zip(("a.b", "c", "000012"), masks, strict=True):
        with Image.open(tmp_path / "masks" / f"{stem}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), mask)
    assert len(list((tmp_path / "masks").iterdir())) == 3
    names = ("p1/1.tif", "p2/1.tif", "p2/2.tif")  # of which two have the same stem
    assert mask_files.mask_names(names) == ("p1_1.png", "p2_1.png", "2.png")


@pytest.mark.parametrize(
    "names",
    [
        ("1/2.png", "3/2.png", "4/1_2.png"),
        ("a.png", "a.bmp", "a.tif"),
        ("A.png", "a.png", "b/A.png"),
        ("x_y/z.png", "x/y_z.png", "x/y/z.png", "x_y_z.png"),
        tuple(f"{'long' * 60}.{number}.png" for number in range(3)),
        tuple(f"{'folder/' * 60}{number}/1.png" for number in range(3)),
        tuple("\xe9" * 120 + f"{number}.png" for number in range(3)),
    ],
)
def test_no_mask_overwrites_another(names: tuple[str, ...], tmp_path: Path) -> None:
    masks = np.arange(len(names), dtype=np.uint8)[:, None, None]
    mask_files.write_masks(tmp_path / "masks", names, masks)
    found = mask_files.mask_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    for mask, name in zip(masks, found, strict=True):
        np.testing.assert_array_equal(mask_files.read_mask(tmp_path / "masks" / name), mask)
