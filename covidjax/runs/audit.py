"""An audit of a data set and its split, before anything is trained, told as JSON and as a page."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from covidjax import files, tasks
from covidjax.data.audit import copies, cues, findings, reading, splits
from covidjax.data.examples import SPLITS
from covidjax.data.formats.read import open_picture
from covidjax.data.picture import own_pixels
from covidjax.errors import UserError
from covidjax.report import audit as page

PICTURE_SIDE = 256


def audit(config: ConfigDict, output: Path) -> dict[str, Any]:
    """Looks for all that `covidjax.data.audit` knows; writes `output` and a page beside it, and returns the content.

    All splits are read, the test split too; nothing is scored on it, so this is no reading of the test split.
    Raises UserError for another ending than .json, and for what is wrong with tables and layout.
    """
    if output.suffix != ".json":
        raise UserError(f"--output is {output}: it ends in .json, and the page beside it in .html")
    task = tasks.of(config.model.name, config.loss.name)
    data = reading.read(config.dataset, masks=task.masks)
    few, counts = splits.counts(data)
    shortcuts, measured = cues.find(data)
    found = [*splits.patients(data), *copies.find(data), *splits.slices(data), *shortcuts, *splits.files(data), *few]
    found.sort(key=lambda one: findings.SERIOUSNESS.index(one.seriousness))
    told = [dataclasses.asdict(one) for one in found]
    result = {
        "verdict": findings.verdict(told),
        "findings": told,
        "cues": measured,
        "counts": counts,
        "patients_known": data.patients_known,
        "notes": list(data.notes),
        "splits": {split: _fingerprint(data, split) for split in SPLITS},
        "root": config.dataset.root or config.dataset.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    names = {name for one in found for pair in one.pairs for name in pair}
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(output, result)
    files.write_text(output.with_suffix(".html"), page.page(result, _pictures(data, names, config.dataset)))
    return result


def describe(result: Mapping[str, Any], output: Path) -> list[str]:
    """The lines that tell what was found."""
    lines = [f"{one['seriousness']}: {one['text']}" for one in result["findings"]]
    return [*result["notes"], *lines, result["verdict"]["text"], f"page: {output.with_suffix('.html')}"]


def _fingerprint(data: reading.Images, split: str) -> str:
    own = [image for image in data.good if image.split == split]
    names, labels, patients, digests = (
        [getattr(image, key) for image in own] for key in ("name", "label", "patient", "digest")
    )
    return findings.fingerprint(names, labels, patients, digests if data.files else [])


def _pictures(data: reading.Images, names: set[str], dataset: ConfigDict) -> dict[str, np.ndarray]:
    """[height, width, 1] uint8 by name, at most 256 pixels a side, of a phantom 64."""
    found = {}
    for image in data.good:
        if image.name not in names:
            continue
        if image.split not in data.files:
            found[image.name] = np.asarray(image.gray).astype(np.uint8)[..., None]
            continue
        pixels = own_pixels(
            open_picture(data.files[image.split].read(image.name), dataset.frame), 1, window=dataset.window
        )
        picture = Image.fromarray(pixels[..., 0])
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        found[image.name] = np.asarray(picture)[..., None]
    return found
