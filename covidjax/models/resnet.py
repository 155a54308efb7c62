"""ResNet in the torchvision v1.5 arrangement: the stride of a bottleneck sits on its 3x3 convolution.

He et al. 2016 (arXiv 1512.03385), table 1; torchvision `models/resnet.py` for padding, stride and epsilon 1e-5.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax import ops
from covidjax.models.cnn import Head
from covidjax.models.layers import BatchNorm, Conv, Staged

LAYERS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BOTTLENECK = ("resnet50", "resnet101", "resnet152")


class Stem(nn.Module):
    """7x7 convolution with stride 2, BatchNorm, ReLU, 3x3 maximum with stride 2."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, ceil(height / 4), ceil(width / 4), 64]."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(64, 7, strides=2, padding=3, name="conv1", **kinds)(x)
        x = nn.relu(BatchNorm(name="norm1", **kinds)(x, use_batch_statistics=use_batch_statistics))
        return ops.max_pool(x, window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width (bottleneck).

    The last BatchNorm of a block starts at scale zero, so that a fresh block is the identity (Goyal et al. 2017, 5.1).
    """

    features: int
    strides: int
    bottleneck: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, ceil(height / strides), ceil(width / strides), out]."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        out_features = self.features * (4 if self.bottleneck else 1)
        plan: tuple[tuple[int, int, int], ...]
        if self.bottleneck:
            plan = ((self.features, 1, 1), (self.features, 3, self.strides), (out_features, 1, 1))
        else:
            plan = ((self.features, 3, self.strides), (out_features, 3, 1))
        y = x
        for number, (features, size, strides) in enumerate(plan, start=1):
            last = number == len(plan)
            y = Conv(features, size, strides, size // 2, name=f"conv{number}", **kinds)(y)
            scale_init = nn.initializers.zeros if last else nn.initializers.ones
            norm = BatchNorm(scale_init=scale_init, name=f"norm{number}", **kinds)
            y = norm(y, use_batch_statistics=use_batch_statistics)
            y = y if last else nn.relu(y)
        if x.shape != y.shape:
            x = Conv(out_features, 1, self.strides, name="shortcut_conv", **kinds)(x)
            x = BatchNorm(name="shortcut_norm", **kinds)(x, use_batch_statistics=use_batch_statistics)
        return nn.relu(x + y)


class Layer(nn.Module):
    """Residual blocks `block1 .. blockN` of one width; the first may halve the map."""

    features: int
    num_blocks: int
    strides: int
    bottleneck: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height / strides, width / strides, out]."""
        for number in range(1, self.num_blocks + 1):
            strides = self.strides if number == 1 else 1
            block = Block(self.features, strides, self.bottleneck, self.dtype, self.param_dtype, name=f"block{number}")
            x = block(x, use_batch_statistics=use_batch_statistics)
        return x


class ResNet(Staged):
    """Stages `stem, layer1 .. layer4, head`."""

    num_classes: int
    num_blocks: tuple[int, int, int, int]
    bottleneck: bool
    dropout: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return ("stem", "layer1", "layer2", "layer3", "layer4", "head")

    def setup(self) -> None:
        """One submodule a stage."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.stem = Stem(**kinds)
        for index, num_blocks in enumerate(self.num_blocks):
            strides = 1 if index == 0 else 2
            setattr(self, f"layer{index + 1}", Layer(64 * 2**index, num_blocks, strides, self.bottleneck, **kinds))
        self.head = Head(self.num_classes, self.dropout, **kinds)
