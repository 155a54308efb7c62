"""ViT-B of Dosovitskiy et al. 2021 (arXiv 2010.11929, table 1), and as DINOv2 has it (Oquab et al. 2024, 2304.07193).

torchvision and timm `models/vision_transformer.py`, transformers `models/dinov2`.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from covidjax.errors import UserError
from covidjax.models.branches import Perceptron, Product, added, truncated_normal
from covidjax.models.layers import Conv, Dense, LayerNorm, Module, Staged, scaled_unit_features


class Size(NamedTuple):
    """patch: pixels a side of what becomes one position; layer_scale: whether branches have one."""

    patch: int
    layer_scale: bool
    num_blocks: int = 12
    features: int = 768
    num_heads: int = 12


SIZES = {"vit_b16": Size(16, False), "vit_b14": Size(14, True)}


class Stem(Module):
    """Patches become positions behind one `class_token`, and `position` is added, which is of one image size."""

    size: Size

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, 1 + patches, features].

        Raises UserError where patches do not divide the image.
        """
        patch, _, _, features, _ = self.size
        if any(side % patch or not side for side in x.shape[1:3]):
            raise UserError(
                f"config.dataset.image_size is {x.shape[1]}, which patches of {patch} pixels do not divide: allowed "
                f"are multiples of {patch}, such as {max(x.shape[1] // patch, 1) * patch}"
            )
        options = {"use_bias": True, "kernel_init": truncated_normal, "numerics": self.numerics}
        patches = Conv(features, patch, patch, **options, name="conv")(x)  # type: ignore[arg-type]
        patches = patches.reshape(len(x), -1, features)
        token = self.weight("class_token", nn.initializers.zeros, 1, 1, features)
        position = self.weight("position", truncated_normal, 1, 1 + patches.shape[1], features)
        tokens = jnp.broadcast_to(token, (len(x), 1, features))
        return jnp.concatenate([tokens, patches], axis=1) + position


class Attention(Module):
    """Self-attention of all positions: products `query`, `key`, `value` and, of what they see, `out`."""

    num_heads: int
    rank: int

    @nn.compact
    def __call__(
        self, x: jax.Array, *, factor: jax.Array | None = None, residual: jax.Array | None = None
    ) -> jax.Array:
        """x: [batch, positions, features] -> the same shape; factor, residual: see `Product`."""
        batch, positions, features = x.shape
        product = partial(Product, features, self.rank, numerics=self.numerics)
        heads = (
            product(name=role)(x).reshape(batch, positions, self.num_heads, features // self.num_heads)
            for role in ("query", "key", "value")
        )
        seen = jax.nn.dot_product_attention(*heads)
        seen = lax.optimization_barrier(seen)  # a GPU's product cannot take it out of the order of the heads
        return product(name="out")(seen.reshape(x.shape), factor=factor, residual=residual)


class Block(Module):
    """LayerNorm `norm1` and `attention`, then LayerNorm `norm2` and `mlp`; each is added to what it read.

    layer_scale1, layer_scale2: [features], of what is added, where the size has them. drop: of stochastic depth. last:
    a LayerNorm `norm` of what leaves.
    """

    size: Size
    drop: float
    last: bool
    rank: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, positions, features] -> the same shape."""
        branches = (
            Attention(self.size.num_heads, self.rank, numerics=self.numerics, name="attention"),
            Perceptron(self.rank, numerics=self.numerics, name="mlp"),
        )
        for number, branch in enumerate(branches, start=1):
            y = LayerNorm(numerics=self.numerics, name=f"norm{number}")(x)
            scale = None
            if self.size.layer_scale:
                scale = self.weight(f"layer_scale{number}", nn.initializers.ones, x.shape[-1])
            x = added(self, x, partial(branch, y), self.drop, scale=scale, train=train)
        return LayerNorm(numerics=self.numerics, name="norm")(x) if self.last else x


class Head(Module):
    """What the class token has seen, dropout, one dense layer to the logits."""

    num_classes: int
    dropout: float
    normalised_features: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, positions, features], or what `reduce` makes of it -> logits [batch, num_classes]."""
        x = nn.Dropout(self.dropout, deterministic=not train)(self.reduce(x))
        x = scaled_unit_features(self, x) if self.normalised_features else x
        return Dense(self.num_classes, numerics=self.numerics, name="dense")(x)

    def reduce(self, x: jax.Array) -> jax.Array:
        """The class token alone: [batch, positions, features] -> [batch, features]."""
        return x[:, 0] if x.ndim == 3 else x


class ViT(Staged):
    """Stages `stem, block1 .. block12, head`. It takes images of the size that it was initialised with.

    stochastic_depth: of the last block; it grows from zero at the first. lora_rank: see `branches.Product`.
    """

    num_classes: int
    size: Size
    stochastic_depth: float = 0.0
    lora_rank: int = 0
    normalised_features: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return ("stem", *(f"block{number}" for number in range(1, self.size.num_blocks + 1)), "head")

    def setup(self) -> None:
        """One submodule a stage."""
        self.stem = Stem(self.size, numerics=self.numerics)
        count = self.size.num_blocks
        for index in range(count):
            drop = self.stochastic_depth * index / max(count - 1, 1)
            block = Block(self.size, drop, index == count - 1, self.lora_rank, numerics=self.numerics)
            setattr(self, f"block{index + 1}", block)
        self.head = Head(self.num_classes, self.dropout, self.normalised_features, numerics=self.numerics)
