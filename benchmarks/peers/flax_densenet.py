"""DenseNet-121 in plain Flax linen; submodules have our names, and so have parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.peers.flax_layers import Classifier, Stem, conv, norm

GROWTH, WIDE = 32, 128


class Layer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, features] -> [batch, height, width, GROWTH]."""
        x = nn.relu(norm(train, self.dtype, "norm1")(x))
        x = conv(WIDE, 1, self.dtype, "conv1")(x)
        x = nn.relu(norm(train, self.dtype, "norm2")(x))
        return conv(GROWTH, 3, self.dtype, "conv2")(x)


class Block(nn.Module):
    """Layers that take what all before them gave; a transition, or in the last BatchNorm and ReLU."""

    count: int
    last: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, features] -> [batch, height // 2, width // 2, half of what there is then]."""
        for number in range(1, self.count + 1):
            x = jnp.concatenate([x, Layer(self.dtype, name=f"layer{number}")(x, train)], axis=-1)
        x = nn.relu(norm(train, self.dtype, "norm" if self.last else "transition_norm")(x))
        if self.last:
            return x
        x = conv(x.shape[-1] // 2, 1, self.dtype, "transition_conv")(x)
        return nn.avg_pool(x, (2, 2), (2, 2))


def densenet(x: jax.Array, live: Any, counts: tuple[int, ...], classes: int, dtype: Any) -> jax.Array:
    """Its stages, called in a module's `__call__`. live: whether a stage's BatchNorm runs on batch statistics."""
    x = Stem(dtype, name="stem")(x, live("stem"))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for number, count in enumerate(counts, start=1):
        stage = f"block{number}"
        x = Block(count, number == len(counts), dtype, name=stage)(x, live(stage))
    return Classifier(classes, dtype, name="head")(x, live("head"))
