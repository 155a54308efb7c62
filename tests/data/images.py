"""Small images, their encoded bytes and their files."""

import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from covidjax.config import default_config
from covidjax.data import picture
from covidjax.data.formats.base import BadImageError
from covidjax.data.formats.read import open_picture


def encoded(image: Image.Image, suffix: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()


def decode_image(content: bytes, spec: picture.ImageSpec) -> np.ndarray:
    """The pixels alone."""
    return picture.decode_image(content, spec)[0]


def gray(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("L", size, value)


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), np.uint8))


@contextlib.contextmanager
def opened_below(root: Path) -> Iterator[set[str]]:
    """The files below a folder, with '/', that are opened within it."""
    found: set[str] = set()
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if watching and event == "open" and str(arguments[0]).startswith(f"{root}/") and Path(arguments[0]).is_file():
            found.add(Path(arguments[0]).relative_to(root).as_posix())

    sys.addaudithook(watch)
    try:
        yield found
    finally:
        watching = False


def dataset_config(root: Path, **changes: object) -> ConfigDict:
    """Of a folder of images, 8 pixels square, with a cache beside it."""
    settings = {"name": "folder", "root": str(root), "image_size": 8, "cache_dir": str(root.parent / "cache")}
    return ConfigDict({**default_config().dataset.to_dict(), **settings, **changes})


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    gray(value, size).save(path)


def write_ramp(path: Path, first: int = 0) -> None:
    """An image of 64 levels, eight pixels square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((first + np.arange(64, dtype=np.uint8)).reshape(8, 8)).save(path)


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def real_data(name: str) -> Path:
    """A folder of the real data sets; without them the test is skipped."""
    if "COVIDJAX_DATA_DIR" not in os.environ:
        pytest.skip(f"COVIDJAX_DATA_DIR is not set: the real {name} is not tested")
    return Path(os.environ["COVIDJAX_DATA_DIR"]) / name


def scene(size: int = 64) -> np.ndarray:
    """Soft shapes with a little noise, from 0 to 1."""
    y, x = np.mgrid[:size, :size] / size
    noise = np.random.default_rng(5).normal(0, 0.02, (size, size))
    return np.clip(0.5 + 0.4 * np.sin(7 * x) * np.cos(5 * y) + noise, 0, 1)


def said(content: bytes, window: str = "", size: int = 32) -> tuple[str, ...]:
    """What a person is told of a picture."""
    return picture.decode_image(content, picture.ImageSpec(size, 1, "squash", window=window))[1]


def refused(content: bytes, reason: str) -> None:
    """It is, in one line."""
    with pytest.raises(BadImageError, match=reason) as caught:
        open_picture(content)
    assert "\n" not in str(caught.value)
