"""ConvNeXt of Liu et al. 2022 (arXiv 2201.03545), as torchvision and timm arrange it: `models/convnext.py` of both."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from covidjax.errors import UserError
from covidjax.models.branches import Perceptron, added, truncated_normal
from covidjax.models.layers import Conv, Head, LayerNorm, Module, Staged


class Size(NamedTuple):
    """The blocks and the features of each stage."""

    num_blocks: tuple[int, ...]
    features: tuple[int, ...]


SIZES = {
    "convnext_tiny": Size((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_base": Size((3, 3, 27, 3), (128, 256, 512, 1024)),
}
FRESH_SCALE = 1e-6  # of the branches of a network that nothing was loaded into


class Stem(Module):
    """Patches of 4x4 pixels become one position, then LayerNorm."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 4, width // 4, features]."""
        conv = Conv(
            self.features, 4, 4, use_bias=True, kernel_init=truncated_normal, numerics=self.numerics, name="conv"
        )
        return LayerNorm(numerics=self.numerics, name="norm")(conv(x))


class Block(Module):
    """Depthwise 7x7 convolution `conv`, LayerNorm `norm`, two dense layers; `layer_scale` [features] of what is added.

    drop: of stochastic depth, see `branches.added`.
    """

    drop: float
    rank: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [batch, height, width, features] -> the same shape."""
        conv = Conv(
            x.shape[-1],
            7,
            padding=3,
            use_bias=True,
            depthwise=True,
            kernel_init=truncated_normal,
            numerics=self.numerics,
            name="conv",
        )
        y = LayerNorm(numerics=self.numerics, name="norm")(conv(x))
        branch = partial(Perceptron(self.rank, numerics=self.numerics, name="mlp"), y)
        scale = self.weight("layer_scale", nn.initializers.constant(FRESH_SCALE), x.shape[-1])
        return added(self, x, branch, self.drop, scale=scale, train=train)


class Stage(Module):
    """LayerNorm and a 2x2 convolution to half of the positions, but in the first stage; then blocks `block1 .. blockN`.

    drops: of stochastic depth, one a block.
    """

    features: int
    drops: tuple[float, ...]
    halves: bool
    rank: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height // 2, width // 2, features].

        Raises UserError where the image was too small.
        """
        if min(x.shape[1:3]) < 1 + self.halves:
            raise UserError(
                "config.dataset.image_size is too small for a ConvNeXt, which halves it five times: allowed are 32 "
                "and more"
            )
        if self.halves:
            x = LayerNorm(numerics=self.numerics, name="downsample_norm")(x)
            x = Conv(
                self.features,
                2,
                2,
                use_bias=True,
                kernel_init=truncated_normal,
                numerics=self.numerics,
                name="downsample_conv",
            )(x)
        for number, drop in enumerate(self.drops, start=1):
            x = Block(drop, self.rank, numerics=self.numerics, name=f"block{number}")(x, train=train)
        return x


class ConvNeXt(Staged):
    """Stages `stem, stage1 .. stage4, head`.

    stochastic_depth: of the last block; it grows from zero at the first. lora_rank: see `branches.Product`.
    """

    num_classes: int
    size: Size
    stochastic_depth: float = 0.0
    lora_rank: int = 0
    pooling: str = "average"
    normalised_features: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return ("stem", *(f"stage{number}" for number in range(1, len(self.size.features) + 1)), "head")

    def setup(self) -> None:
        """One submodule a stage."""
        counts, features = self.size
        self.stem = Stem(features[0], numerics=self.numerics)
        last = max(sum(counts) - 1, 1)
        for index, (count, wide) in enumerate(zip(counts, features, strict=True)):
            first = sum(counts[:index])
            drops = tuple(self.stochastic_depth * (first + number) / last for number in range(count))
            stage = Stage(wide, drops, index > 0, self.lora_rank, numerics=self.numerics)
            setattr(self, f"stage{index + 1}", stage)
        self.head = Head(
            self.num_classes, self.dropout, self.pooling, self.normalised_features, True, numerics=self.numerics
        )
