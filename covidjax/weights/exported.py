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
        if datetime.date.today().isoformat() > about["until"] and jax.__version__ != about["versions"]["jax"]:
            raise ValueError(
                f"{path} is of jax {about['versions']['jax']}, good until {about['until']}: export it again"
            )
        call = jax.jit(export.deserialize(bytearray(file.read("program"))).call)
        weights = jax.device_put(list(np.load(io.BytesIO(file.read("weights.npz"))).values()))

    def predict(images: Any) -> Any:
        if images.dtype != np.uint8 or list(images.shape[1:]) != about["images"]:
            raise ValueError(f"images are {images.shape} {images.dtype}: allowed are [n, *{about['images']}] uint8")
        return np.asarray(call(weights, images))

    return predict, about
