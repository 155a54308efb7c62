"""ConvNeXt and ViT-B in plain Flax linen; submodules have our names, and so have parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import work
from benchmarks.peers.flax_layers import Classifier

Dtype = Any


def norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    """LayerNorm as all have it."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


class Mlp(nn.Module):
    """Two dense layers with GELU in between."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, ..., features] -> the same shape."""
        wide = nn.gelu(nn.Dense(4 * x.shape[-1], dtype=self.dtype, name="dense1")(x), approximate=False)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="dense2")(wide)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, two dense layers, scaled and added."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, features] -> the same shape."""
        features = x.shape[-1]
        y = nn.Conv(features, (7, 7), feature_group_count=features, dtype=self.dtype, name="conv")(x)
        y = Mlp(self.dtype, name="mlp")(norm(self.dtype, "norm")(y))
        return x + self.param("layer_scale", nn.initializers.constant(1e-6), (features,)).astype(self.dtype) * y


class ConvNeXtStage(nn.Module):
    """LayerNorm and a 2x2 convolution where it halves, then blocks."""

    count: int
    features: int
    halves: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 2, width // 2, features]."""
        if self.halves:
            x = norm(self.dtype, "downsample_norm")(x)
            x = nn.Conv(self.features, (2, 2), (2, 2), padding="VALID", dtype=self.dtype, name="downsample_conv")(x)
        for number in range(1, self.count + 1):
            x = ConvNeXtBlock(self.dtype, name=f"block{number}")(x)
        return x


class ConvNeXtStem(nn.Module):
    """Patches of 4x4 pixels, LayerNorm."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 4, width // 4, features]."""
        x = nn.Conv(self.features, (4, 4), (4, 4), padding="VALID", dtype=self.dtype, name="conv")(x)
        return norm(self.dtype, "norm")(x)


class NormedClassifier(nn.Module):
    """Global average, LayerNorm, dense layer."""

    classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, features] -> logits [batch, classes]."""
        x = norm(self.dtype, "norm")(jnp.mean(x, (1, 2)))
        return nn.Dense(self.classes, dtype=self.dtype, name="dense")(x)


def convnext(x: jax.Array, model: str, classes: int, dtype: Dtype) -> jax.Array:
    """Its stages, called in a module's `__call__`."""
    counts, features = work.CONVNEXTS[model]
    x = ConvNeXtStem(features[0], dtype, name="stem")(x)
    for index, (count, wide) in enumerate(zip(counts, features, strict=True)):
        x = ConvNeXtStage(count, wide, index > 0, dtype, name=f"stage{index + 1}")(x)
    return NormedClassifier(classes, dtype, name="head")(x)


class ViTStem(nn.Module):
    """Patches, class token, positions."""

    patch: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, 1 + patches, features]."""
        features, size = work.VIT_FEATURES, (self.patch, self.patch)
        x = nn.Conv(features, size, size, padding="VALID", dtype=self.dtype, name="conv")(x)
        x = x.reshape(len(x), -1, features)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, features)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, features)), x], axis=1)
        return x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(self.dtype)


class Attention(nn.Module):
    """Self-attention."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, positions, features] -> the same shape."""
        shape = (*x.shape[:2], work.VIT_HEADS, -1)
        query, key, value = (
            nn.Dense(x.shape[-1], dtype=self.dtype, name=role)(x).reshape(shape) for role in ("query", "key", "value")
        )
        seen = nn.dot_product_attention(query, key, value).reshape(x.shape)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(seen)


class ViTBlock(nn.Module):
    """LayerNorm, attention; LayerNorm, dense layers; both scaled where asked, and added."""

    scaled: bool
    last: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, positions, features] -> the same shape."""
        branches = Attention(self.dtype, name="attention"), Mlp(self.dtype, name="mlp")
        for number, branch in enumerate(branches, start=1):
            y = branch(norm(self.dtype, f"norm{number}")(x))
            if self.scaled:
                y = self.param(f"layer_scale{number}", nn.initializers.ones, x.shape[-1:]).astype(self.dtype) * y
            x = x + y
        return norm(self.dtype, "norm")(x) if self.last else x


def vit(x: jax.Array, model: str, classes: int, dtype: Dtype) -> jax.Array:
    """Its stages, called in a module's `__call__`."""
    patch, scaled = work.VITS[model]
    x = ViTStem(patch, dtype, name="stem")(x)
    for number in range(1, work.VIT_BLOCKS + 1):
        x = ViTBlock(scaled, number == work.VIT_BLOCKS, dtype, name=f"block{number}")(x)
    return Classifier(classes, dtype, name="head")(x[:, None, :1], train=False)
