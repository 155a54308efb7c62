"""Loads what launch/export.py wrote: needs jax and numpy, and nothing of covidjax. A copy lies in every such file."""

import datetime
import io
import json
import zipfile
from typing import Any

import jax
import numpy as np
from jax import export


def load(path: Any) -> tuple[Any, Any]:
    """(predict, about): predict takes images [n, height, width, channels] uint8; about says what they and it are."""
    with zipfile.ZipFile(path) as file:
        about = json.loads(file.read("about.json"))
        check_date(path, about["until"], about["versions"]["jax"])
        call = jax.jit(export.deserialize(bytearray(file.read("program"))).call)
        weights = jax.device_put(list(np.load(io.BytesIO(file.read("weights.npz"))).values()))

    def predict(images: Any) -> Any:
        check_images(images, about["images"])
        return np.asarray(call(weights, images))

    return predict, about


def check_date(path: Any, until: str, version: str) -> None:
    """Raises ValueError where this jax is another one, and too late."""
    if datetime.date.today().isoformat() > until and jax.__version__ != version:
        raise ValueError(f"{path} is of jax {version}, good until {until}: export it again")


def check_images(images: Any, shape: list[int]) -> None:
    """Raises ValueError for images of another shape or type."""
    if images.dtype != np.uint8 or list(images.shape[1:]) != shape:
        raise ValueError(f"images are {images.shape} {images.dtype}: allowed are [n, *{shape}] uint8")
