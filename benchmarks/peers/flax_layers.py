"""Parts that several networks in plain Flax linen have."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import work

Dtype = Any


def conv(features: int, size: int, dtype: Dtype, name: str, *, strides: int = 1, bias: bool = False) -> nn.Conv:
    """A convolution with symmetric padding."""
    return nn.Conv(
        features,
        (size, size),
        strides=(strides, strides),
        padding=((size // 2, size // 2),) * 2,
        use_bias=bias,
        dtype=dtype,
        name=name,
    )


def norm(train: bool, dtype: Dtype, name: str) -> nn.BatchNorm:
    """BatchNorm on batch statistics where it trains."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=work.MOMENTUM, epsilon=work.EPSILON, dtype=dtype, name=name
    )


class Classifier(nn.Module):
    """Global average, dense layer."""

    classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, features] -> logits [batch, classes]."""
        return nn.Dense(self.classes, dtype=self.dtype, name="dense")(jnp.mean(x, (1, 2)))


class Stem(nn.Module):
    """7x7 convolution, BatchNorm, ReLU; the maximum is the network's."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height / 2, width / 2, 64]."""
        x = conv(64, 7, self.dtype, "conv1", strides=2)(x)
        return nn.relu(norm(train, self.dtype, "norm1")(x))
