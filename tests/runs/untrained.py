"""Networks that were never trained, the images they answer, and what they answer."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from covidjax.data.picture import ImageSpec, decode_image
from covidjax.models.layers import Conv, Staged
from covidjax.models.preprocessing import Preprocessing
from covidjax.weights.workdir import Trained
from tests.support import make_model, small_config

SIZE = 16
LABELS = ("healthy", "ill")
PIXELS = ("background", "lung", "lesion")
SIZES = {"a.png": (20, 30), "b.jpg": (16, 16), "deep/c.tif": (45, 17), "deep/d.png": (9, 9), "e.bmp": (33, 20)}


class OneConvolution(Staged):
    """The least network that answers with masks: it stands for a U-Net, which takes long to compile."""

    num_classes: int

    @property
    def stages(self) -> tuple[str, ...]:
        return ("head",)

    def setup(self) -> None:
        self.head = Convolution(self.num_classes)


class Convolution(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        return Conv(self.features, 3, padding=1)(x)


def untrained(model: str, classes: tuple[str, ...], **changes: Any) -> Trained:
    config = small_config(model, batch_size=2, dataset__image_size=SIZE, model__width=2, **changes)
    network = OneConvolution(len(classes)) if model == "unet" else make_model(config, len(classes))
    variables = dict(network.init(jax.random.key(3), jnp.zeros((1, SIZE, SIZE, 1))))
    return Trained(config, classes, network, Preprocessing(), variables, 7, "best")


def logits_of(trained: Trained, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(trained.model.apply(trained.variables, trained.preprocessing(jnp.asarray(pixels, jnp.float32))))


def network_pixels(folder: Path, name: str, crop: str = "center", enhancement: str = "none") -> np.ndarray:
    return decode_image((folder / name).read_bytes(), ImageSpec(SIZE, 1, crop, enhancement))[0]
