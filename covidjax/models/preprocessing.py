"""The normalisation of pixel values before the first layer. It belongs to the weights, not to the data set."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """`(images * scale - mean) / std` by channel, after the channels are put in the order of the weights.

    scale, mean, std: of pixel values 0..255; mean and std have one value for each channel of the network, or one for
        all. channel_order: 'rgb', or 'bgr' for weights of the Caffe tradition; mean and std are in this order.
    A one-channel image under several values becomes as many channels: it is replicated.
    inside: give beside the images one image [1, height, width, 1] of ones, for kernels that hold the rest of the
        normalisation (`folded`).
    The default, for networks trained from random initialisation, takes 0..255 to about zero mean and unit spread.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    channel_order: str = "rgb"
    inside: bool = False

    def __call__(self, images: jax.Array) -> Any:
        """images: [batch, height, width, channels], values 0..255 -> what the first stage takes.

        That is [batch, height, width, network's channels], with `inside` as a pair with the image of ones.
        """
        mean, std = (jnp.asarray(values, images.dtype) for values in (self.mean, self.std))
        if self.channel_order == "bgr":
            images = images[..., ::-1]
        images = (images * self.scale - mean) / std
        return (images, jnp.ones_like(images[:1, ..., :1])) if self.inside else images

    def __str__(self) -> str:
        """In words, for the person who runs this."""
        mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        name = "gray" if len(self.mean) == 1 else self.channel_order.upper()
        name += " beside ones" if self.inside else ""
        return f"{name}, (pixels x {self.scale:.4g} - ({mean})) / ({std})"


IMAGENET = Preprocessing(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision, and most of timm
CAFFE = Preprocessing(1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr")  # Keras VGG and ResNet v1
HED = Preprocessing(1.0, (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0), "bgr")  # Xie and Tu 2015, in Caffe
SYMMETRIC = Preprocessing(1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))  # Keras ResNet v2 ("tf"): -1..1
XRV = Preprocessing(2048 / 255, (1024.0,), (1.0,))  # torchxrayvision `utils.normalize`: gray, -1024..1024
# Its `preprocessor_config.json` was not at hand: compare before figures are published (docs/weights.md).
RAD_DINO = Preprocessing(1 / 255, (0.5307,) * 3, (0.2583,) * 3)
HALF = Preprocessing(1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # timm's recipes of 2024
STEMS = ("replicate", "fold")  # of `config.model.stem`
CHOICES = ("auto", "unit")  # of `config.preprocessing`: what belongs to the weights, or pixels / 255


def folded(weights: Preprocessing) -> Preprocessing:
    """The preprocessing of gray images in place of three channels, under kernels from `fold_kernel`.

    The network pads with zeros after the normalisation. No value of a single gray channel is zero in all the channels
    it stands for, unless their means are equal; so the part of the normalisation in which the channels differ goes
    through a second channel that is one inside the image: the border is exact as well. That channel is the same for
    all images and is convolved once a batch.
    """
    mean, std = _common(weights)
    differ = any(value != mean for value in weights.mean)
    return Preprocessing(weights.scale, (mean,), (std,), inside=differ)


def fold_kernel(kernel: jax.Array, weights: Preprocessing) -> jax.Array:
    """A kernel for `folded` that gives on a gray image what `kernel` gives on its replicated channels.

    kernel: [height, width, channels, features] -> [height, width, 1 or 2, features].
    """
    mean, std = _common(weights)
    means, stds = (jnp.asarray(values, kernel.dtype)[:, None] for values in (weights.mean, weights.std))
    image = jnp.sum(kernel * (std / stds), 2, keepdims=True)
    rest = jnp.sum(kernel * ((mean - means) / stds), 2, keepdims=True)
    return jnp.concatenate([image, rest], 2) if folded(weights).inside else image


def _common(weights: Preprocessing) -> tuple[float, float]:
    return sum(weights.mean) / len(weights.mean), sum(weights.std) / len(weights.std)


def unit(weights: Preprocessing) -> Preprocessing:
    """Pixels / 255, channels as the images have them, for the network of weights that may be used to other values."""
    channels = len(weights.mean)
    return dataclasses.replace(
        weights, scale=1 / 255, mean=(0.0,) * channels, std=(1.0,) * channels, channel_order="rgb"
    )


def fresh(channels: int) -> Preprocessing:
    """The preprocessing of a network that starts from random initialisation."""
    return Preprocessing(mean=(0.5,) * channels, std=(0.25,) * channels)
