"""What the evaluation of masks leaves in a workdir: predicted masks as PNG and a table of their figures.

`masks_<split>/<stem>.png` holds the class ids at the size that the network sees; the table has the file of each.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from covidjax import files
from covidjax.errors import UserError


def mask_names(names: Sequence[str]) -> tuple[str, ...]:
    """The file name of the mask of each image: no two are the same, also where capitals do not count.

    Its stem or, where two images have the same one, its whole path; where these are the same too, with a digest of the
    name. Long ones are shortened.
    """
    forms = (
        lambda name: PurePosixPath(name).stem,
        lambda name: str(PurePosixPath(name).with_suffix("")).replace("/", "_"),
        lambda name: f"{PurePosixPath(name).stem[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}",
    )
    found = [files.shortened(forms[0](name)) for name in names]
    for form in forms[1:]:
        twins = Counter(stem.casefold() for stem in found)
        found = [
            stem if twins[stem.casefold()] == 1 else files.shortened(form(name))
            for name, stem in zip(names, found, strict=True)
        ]
    return tuple(f"{stem}.png" for stem in found)


def write_masks(folder: Path, names: Sequence[str], masks: np.ndarray) -> None:
    """Writes masks [n, height, width] uint8 of the images of these names. Raises UserError where it cannot."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}: free space or remove it") from error
    for name, mask in zip(mask_names(names), masks, strict=True):
        content = io.BytesIO()
        Image.fromarray(mask).save(content, format="png")
        files.write_bytes(folder / name, content.getvalue())


def read_mask(path: Path) -> np.ndarray:
    """A mask that `write_masks` wrote: [height, width] uint8 class ids."""
    with Image.open(path) as mask:
        return np.asarray(mask)


def read_mask_of(path: Path, size: tuple[int, int], flag: str) -> np.ndarray:
    """A mask of a new image, as `launch/predict.py` wrote it: [height, width] uint8, 0 outside.

    size: width and height of the image; flag: what named the folder, for messages. Raises UserError where it cannot be
    read, or is of another size.
    """
    try:
        mask = read_mask(path)
    except OSError as error:
        raise UserError(
            f"{flag}: cannot read {path}: {error.strerror or error}: give the folder of masks that launch/predict.py "
            "wrote of the same --images"
        ) from error
    if mask.shape != size[::-1]:
        raise UserError(f"{flag}: {path} is no mask of an image of {size[0]}x{size[1]} pixels")
    return mask


def write_predictions(
    path: Path, per_image: Sequence[Mapping[str, Any]], facts: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Writes predictions_<split>.csv: a row for each image of `segmentation_metrics.report_from_counts`.

    Its columns are file, mask (of `write_masks`), patient, dice and iou, the means over all classes but the background,
    and for each of these dice_, iou_, true_pixels_ and predicted_pixels_<class>; then `Examples.facts`.
    Raises UserError where the file cannot be written.
    """
    means, figures = ("patient", "dice", "iou"), ("dice", "iou", "true_pixels", "predicted_pixels")
    classes = list(per_image[0]["per_class"])
    header = ["file", "mask", *means, *(f"{figure}_{name}" for name in classes for figure in figures)]
    told = facts or {}
    header += told
    rows = (
        [
            image["file"],
            mask,
            *(image[key] for key in means),
            *(image["per_class"][name][figure] for name in classes for figure in figures),
            *own,
        ]
        for image, mask, *own in zip(
            per_image, mask_names([image["file"] for image in per_image]), *told.values(), strict=True
        )
    )
    files.write_csv(path, header, rows)
