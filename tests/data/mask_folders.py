"""Folders of images with masks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from covidjax.data import sources
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.listing import ImageFiles
from tests.data.images import dataset_config as config
from tests.data.images import write_image as write
from tests.data.images import write_rows

PAIR_HEADER = ("file", "patient", "split")


def pair_config(root: Path, **changes: object) -> ConfigDict:
    return config(root, **{"mask_classes": ("background", "lung"), **changes})


def load_pairs(root: Path, split: str, **changes: object) -> Examples:
    return sources.load(pair_config(root, **changes), split, masks=True)


def list_pairs(root: Path, split: str, **changes: object) -> ImageFiles:
    return sources.listed(pair_config(root, **changes), split, masks=True)


def write_pairs(root: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = PAIR_HEADER) -> None:
    write_rows(root / "splits.csv", header, rows)


@pytest.fixture
def flat(tmp_path: Path) -> Callable[..., Path]:
    """Make root/images/<number>.jpg and root/masks/<number>.png; with `table` two images for each patient."""

    def build(count: int = 8, table: bool = True, ending: str = ".png") -> Path:
        root = tmp_path / "root"
        for number in range(count):
            write(root / "images" / f"{number}.jpg", number)
            write(root / "masks" / f"{number}{ending}", 255 * (number % 2))
        if table:
            write_pairs(root, [(f"{n}.jpg", f"p{n // 2}", SPLITS[n // 2 % 3]) for n in range(count)])
        return root

    return build


@pytest.fixture
def beside(tmp_path: Path) -> Callable[..., Path]:
    """Make root/<patient>/<name>.tif with <name>_mask.tif, three for each patient."""

    def build(num_patients: int = 16, below: str = "") -> Path:
        root = tmp_path / "root"
        for patient in range(num_patients):
            for number in range(3):
                write(root / below / f"TCGA_{patient:02}" / f"TCGA_{patient:02}_{number}.tif", patient)
                write(root / below / f"TCGA_{patient:02}" / f"TCGA_{patient:02}_{number}_mask.tif", 255)
        return root

    return build
