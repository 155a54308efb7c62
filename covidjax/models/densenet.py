"""DenseNet-121 of Huang et al. 2017 (arXiv 1608.06993, table 1), as torchvision and torchxrayvision arrange it.

torchvision `models/densenet.py`; torchxrayvision `models.py` has the same network for one gray channel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax import ops
from covidjax.errors import UserError
from covidjax.models.layers import BatchNorm, Conv, Head, Module, Staged

LAYERS = {"densenet121": (6, 12, 24, 16)}
FIRST, GROWTH, WIDE = 64, 32, 128  # features of the stem, that a layer adds, and in between


class Stem(Module):
    """7x7 convolution with stride 2, BatchNorm, ReLU, 3x3 maximum with stride 2."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, ceil(height / 4), ceil(width / 4), 64]."""
        conv = Conv(FIRST, 7, strides=2, padding=3, numerics=self.numerics, name="conv1")
        norm = BatchNorm(numerics=self.numerics, name="norm1")
        x = norm(x, conv=conv, use_batch_statistics=use_batch_statistics, relu=True)
        return ops.max_pool(x, window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), native=self.numerics.native)


class Layer(Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution: the features that a layer adds."""

    @nn.compact
    def __call__(self, x: jax.Array, *, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, features] -> [batch, height, width, GROWTH]."""
        norms = (BatchNorm(numerics=self.numerics, name=f"norm{number}") for number in (1, 2))
        x = next(norms)(x, use_batch_statistics=use_batch_statistics, relu=True)
        conv = Conv(WIDE, 1, numerics=self.numerics, name="conv1")
        x = next(norms)(x, conv=conv, use_batch_statistics=use_batch_statistics, relu=True)
        return Conv(GROWTH, 3, padding=1, numerics=self.numerics, name="conv2")(x)


class Block(Module):
    """Layers `layer1 .. layerN`, each on the block's input and all that the layers before it have added.

    Then, but in the last block, BatchNorm, ReLU and a 1x1 convolution to half of the features, on half of the
    positions (`transition_norm`, `transition_conv`); in the last one BatchNorm and ReLU (`norm`). The mean of 2x2
    positions is taken before the convolution: the same, for a quarter of the products.
    """

    num_layers: int
    last: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, features] -> [batch, height // 2, width // 2, (features + added) / 2].

        The last one: [batch, height, width, features + added]. Raises UserError where the image was too small.
        """
        maps = [x.astype(self.numerics.dtype)]
        for number in range(1, self.num_layers + 1):
            layer = Layer(numerics=self.numerics, name=f"layer{number}")
            # Of the maps themselves, which XLA can read in their places, and not of what was joined before.
            maps.append(layer(jnp.concatenate(maps, axis=-1), use_batch_statistics=use_batch_statistics))
        x = jnp.concatenate(maps, axis=-1)
        norm = BatchNorm(numerics=self.numerics, name="norm" if self.last else "transition_norm")
        x = norm(x, use_batch_statistics=use_batch_statistics, relu=True)
        if self.last:
            return x
        batch, height, width, features = x.shape
        if min(height, width) < 2:
            raise UserError(
                "config.dataset.image_size is too small for a DenseNet, which halves it five times: allowed are 29 "
                "and more"
            )
        x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, features)
        return Conv(features // 2, 1, numerics=self.numerics, name="transition_conv")(jnp.mean(x, (2, 4)))


class DenseNet(Staged):
    """Stages `stem, block1 .. block4, head`."""

    num_classes: int
    num_layers: tuple[int, ...]
    pooling: str = "average"
    normalised_features: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return ("stem", *(f"block{number}" for number in range(1, len(self.num_layers) + 1)), "head")

    def setup(self) -> None:
        """One submodule a stage."""
        self.stem = Stem(numerics=self.numerics)
        for number, num_layers in enumerate(self.num_layers, start=1):
            block = Block(num_layers, number == len(self.num_layers), numerics=self.numerics)
            setattr(self, f"block{number}", block)
        self.head = Head(self.num_classes, self.dropout, self.pooling, self.normalised_features, numerics=self.numerics)
