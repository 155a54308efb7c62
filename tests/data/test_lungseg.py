"""The real lung masks, where they are at hand."""

import os
from pathlib import Path

import pytest

from covidjax.data.pairs import load
from tests.data.test_pairs import config


@pytest.fixture
def lungseg() -> Path:
    if "COVIDJAX_DATA_DIR" not in os.environ:
        pytest.skip("COVIDJAX_DATA_DIR is not set: the real lungseg images are not tested")
    return Path(os.environ["COVIDJAX_DATA_DIR"]) / "lungseg"


@pytest.mark.parametrize(("split", "images", "patients"), [("train", 119, 78), ("val", 18, 11), ("test", 35, 23)])
def test_lungseg_decodes_as_its_readme_says(
    lungseg: Path, tmp_path: Path, split: str, images: int, patients: int
) -> None:
    examples = load(config(lungseg, image_size=64, cache_dir=str(tmp_path)), split)
    assert examples.masks is not None
    assert (len(examples), len(set(examples.patients))) == (images, patients)
    assert examples.notes == ()
    fractions = examples.masks.mean(axis=(1, 2))
    assert 0.08 < fractions.min() < fractions.max() < 0.75
