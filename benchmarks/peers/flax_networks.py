"""The networks in plain Flax linen, as its documentation has it; submodules have our names, and so have parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import work
from benchmarks.peers.flax_densenet import densenet
from benchmarks.peers.flax_layers import Classifier, Stem, conv, norm
from benchmarks.peers.flax_transformers import convnext, vit

Dtype = Any


class CNNBlock(nn.Module):
    """Convolution, BatchNorm, ReLU, maximum."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 2, width // 2, features]."""
        x = conv(self.features, 3, self.dtype, "conv")(x)
        x = nn.relu(norm(train, self.dtype, "norm")(x))
        return nn.max_pool(x, (2, 2), (2, 2))


class ResidualBlock(nn.Module):
    """A basic block, or a bottleneck with its stride in the 3x3 convolution."""

    features: int
    strides: int
    bottleneck: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height / strides, width / strides, out]."""
        out = self.features * (4 if self.bottleneck else 1)
        first = (1, 1) if self.bottleneck else (3, self.strides)  # size, strides
        y = conv(self.features, first[0], self.dtype, "conv1", strides=first[1])(x)
        y = nn.relu(norm(train, self.dtype, "norm1")(y))
        y = conv(self.features, 3, self.dtype, "conv2", strides=self.strides if self.bottleneck else 1)(y)
        y = norm(train, self.dtype, "norm2")(y)
        if self.bottleneck:
            y = conv(out, 1, self.dtype, "conv3")(nn.relu(y))
            y = norm(train, self.dtype, "norm3")(y)
        if x.shape != y.shape:
            x = conv(out, 1, self.dtype, "shortcut_conv", strides=self.strides)(x)
            x = norm(train, self.dtype, "shortcut_norm")(x)
        return nn.relu(x + y)


class ResidualLayer(nn.Module):
    """Residual blocks of one width."""

    features: int
    count: int
    strides: int
    bottleneck: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height / strides, width / strides, out]."""
        for number in range(1, self.count + 1):
            strides = self.strides if number == 1 else 1
            x = ResidualBlock(self.features, strides, self.bottleneck, self.dtype, name=f"block{number}")(x, train)
        return x


class VGGBlock(nn.Module):
    """Convolutions with ReLU, maximum."""

    features: int
    count: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 2, width // 2, features]."""
        for number in range(1, self.count + 1):
            x = nn.relu(conv(self.features, 3, self.dtype, f"conv{number}", bias=True)(x))
        return nn.max_pool(x, (2, 2), (2, 2))


class VGGHead(nn.Module):
    """Flatten, hidden dense layers with ReLU, dense layer."""

    classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, features] -> logits [batch, classes]."""
        x = x.reshape((x.shape[0], -1))
        for number, features in enumerate(work.VGG_HIDDEN, start=1):
            x = nn.relu(nn.Dense(features, dtype=self.dtype, name=f"dense{number}")(x))
        return nn.Dense(self.classes, dtype=self.dtype, name=f"dense{len(work.VGG_HIDDEN) + 1}")(x)


class TwoConvolutions(nn.Module):
    """Twice a 3x3 convolution, BatchNorm, ReLU."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height, width, features]."""
        for number in (1, 2):
            x = conv(self.features, 3, self.dtype, f"conv{number}")(x)
            x = nn.relu(norm(train, self.dtype, f"norm{number}")(x))
        return x


class Up(nn.Module):
    """Transposed convolution, join, two convolutions."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels], skip: twice as large -> [batch, 2 * height, 2 * width, features]."""
        x = nn.ConvTranspose(self.features, (2, 2), strides=(2, 2), dtype=self.dtype, name="up_conv")(x)
        x = jnp.concatenate([skip.astype(self.dtype), x], axis=-1)
        for number in (1, 2):
            x = conv(self.features, 3, self.dtype, f"conv{number}")(x)
            x = nn.relu(norm(train, self.dtype, f"norm{number}")(x))
        return x


class PixelClassifier(nn.Module):
    """1x1 convolution."""

    classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, features] -> logits [batch, height, width, classes]."""
        return conv(self.classes, 1, self.dtype, "conv", bias=True)(x)


class Decoder(nn.Module):
    """The expanding path on a ResNet."""

    dtype: Dtype

    @nn.compact
    def __call__(self, skips: Sequence[jax.Array], train: bool) -> jax.Array:
        """skips: images and maps, the largest first -> [batch, height, width, features]."""
        *skips, x = skips
        for number, features in enumerate(work.UNET_RESNET_FEATURES, start=1):
            x = Up(features, self.dtype, name=f"up{number}")(x, skips.pop(), train)
        return x


class Network(nn.Module):
    """The network of a case. frozen: stages whose BatchNorm runs on running statistics."""

    model: str
    width: int
    classes: int
    dtype: Dtype
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> logits."""

        def live(stage: str) -> bool:
            return train and stage not in self.frozen

        kinds, maps = {"dtype": self.dtype}, [x]
        if self.model == "cnn":
            for level in range(work.CNN_BLOCKS):
                stage = f"block{level + 1}"
                x = CNNBlock(self.width * 2**level, name=stage, **kinds)(x, live(stage))
            return Classifier(self.classes, name="head", **kinds)(x, live("head"))
        if self.model == "vgg16":
            for number, (features, count) in enumerate(work.VGG_BLOCKS, start=1):
                x = VGGBlock(features, count, name=f"block{number}", **kinds)(x, live(f"block{number}"))
            return VGGHead(self.classes, name="head", **kinds)(x, live("head"))
        if self.model == "unet":
            maps = []
            for level in range(work.UNET_LEVELS):
                stage = f"down{level + 1}"
                x = TwoConvolutions(self.width * 2**level, name=stage, **kinds)(x, live(stage))
                maps.append(x)
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = TwoConvolutions(self.width * 2**work.UNET_LEVELS, name="middle", **kinds)(x, live("middle"))
            for level in range(work.UNET_LEVELS):
                stage, features = f"up{level + 1}", self.width * 2 ** (work.UNET_LEVELS - 1 - level)
                x = Up(features, name=stage, **kinds)(x, maps.pop(), live(stage))
            return PixelClassifier(self.classes, name="head", **kinds)(x, live("head"))
        if self.model in work.PORTED:
            return ported(x, self.model, live, self.classes, self.dtype)
        x = Stem(name="stem", **kinds)(x, live("stem"))
        maps.append(x)
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        base = self.model.removeprefix("unet_")
        for index, count in enumerate(work.BLOCKS[base]):
            stage, strides = f"layer{index + 1}", 1 if index == 0 else 2
            x = ResidualLayer(64 * 2**index, count, strides, base == "resnet50", name=stage, **kinds)(x, live(stage))
            maps.append(x)
        if base == self.model:
            return Classifier(self.classes, name="head", **kinds)(x, live("head"))
        x = Decoder(name="decoder", **kinds)(maps, live("decoder"))
        return PixelClassifier(self.classes, name="head", **kinds)(x, live("head"))


def ported(x: jax.Array, model: str, live: Callable[[str], bool], classes: int, dtype: Dtype) -> jax.Array:
    """The stages of a network that has a module of its own here, called in a module's `__call__`."""
    if model in work.CONVNEXTS:
        return convnext(x, model, classes, dtype)
    if model in work.VITS:
        return vit(x, model, classes, dtype)
    return densenet(x, live, work.DENSE_LAYERS[model], classes, dtype)
