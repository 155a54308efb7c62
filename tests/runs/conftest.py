"""Networks and images of the predictions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidjax.weights.workdir import Trained
from tests.runs.untrained import LABELS, PIXELS, SIZES, untrained


@pytest.fixture(scope="session")
def classifier() -> Trained:
    return untrained("cnn", LABELS, model__num_blocks=2)


@pytest.fixture(scope="session")
def unet() -> Trained:
    return untrained("unet", PIXELS)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder
