"""What a network does to pixel values before its first layer. It belongs to the weights, not to the data set."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """`(images * scale - mean) / std` by channel; one value serves all channels.

    The default, for networks trained from random initialisation, takes 0..255 to about zero mean and unit spread.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    def __call__(self, images: jax.Array) -> jax.Array:
        """images: [batch, height, width, channels], values 0..255 -> the same shape and dtype."""
        mean, std = (jnp.asarray(values, images.dtype) for values in (self.mean, self.std))
        return (images * self.scale - mean) / std
