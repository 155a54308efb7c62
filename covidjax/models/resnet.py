"""ResNets as torchvision and as Keras arrange them, with and without pre-activation.

He et al. 2016 (arXiv 1512.03385, table 1; pre-activation: arXiv 1603.05027); torchvision `models/resnet.py` and Keras
`applications/resnet.py` for padding, stride, bias and epsilon.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax import ops
from covidjax.models.layers import BatchNorm, Conv, Head, Module, Staged

FEATURES = 64  # of stem and first layer; each of the others has twice those of the one before
LAYERS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
PREACTIVATED = {"resnet50v2": "resnet50", "resnet101v2": "resnet101", "resnet152v2": "resnet152"}
BOTTLENECK = ("resnet50", "resnet101", "resnet152")
ENCODER_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """The details in which networks that are all called ResNet differ. Convolutions and blocks count from 1.

    strided_conv: the convolution of a bottleneck that carries the stride. biased: the convolutions with a bias.
    preactivation: BatchNorm and ReLU come before each convolution, and the stride of a layer sits in its last block.
    """

    preactivation: bool = False
    strided_conv: int = 2
    biased: tuple[str, ...] = ()
    epsilon: float = 1e-5
    momentum: float = 0.9


TORCHVISION = Arrangement()
KERAS = Arrangement(
    strided_conv=1,
    biased=("stem", "conv1", "conv2", "conv3", "shortcut_conv"),
    epsilon=1.001e-5,
    momentum=0.99,
)
KERAS_V2 = Arrangement(preactivation=True, biased=("stem", "conv3", "shortcut_conv"), epsilon=1.001e-5, momentum=0.99)
ARRANGEMENTS = {"torchvision": TORCHVISION, "keras": KERAS}


class Stem(Module):
    """7x7 convolution with stride 2, BatchNorm and ReLU unless pre-activated, 3x3 maximum with stride 2 if `pooled`."""

    arrangement: Arrangement = TORCHVISION
    pooled: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, ceil(height / 4), ceil(width / 4), 64]."""
        rules = self.arrangement
        biased = "stem" in rules.biased
        conv = Conv(FEATURES, 7, strides=2, padding=3, use_bias=biased, numerics=self.numerics, name="conv1")
        if rules.preactivation:
            # Keras pads this signed map with zeros, and a zero may win: they are part of the network.
            x = jnp.pad(conv(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
            return ops.max_pool(x, window=(3, 3), strides=(2, 2), native=self.numerics.native)
        norm = BatchNorm(rules.epsilon, rules.momentum, numerics=self.numerics, name="norm1")
        x = norm(x, conv=conv, use_batch_statistics=use_batch_statistics, relu=True)
        if not self.pooled:
            return x
        return ops.max_pool(x, window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), native=self.numerics.native)


class Block(Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width (bottleneck).

    `norm1` belongs to `conv1` and so on: it follows its convolution, or precedes it where the block is pre-activated.
    The last BatchNorm that follows a convolution starts at scale zero, so that a fresh block is the identity
    (Goyal et al. 2017, 5.1).
    """

    features: int
    strides: int
    bottleneck: bool
    arrangement: Arrangement = TORCHVISION
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, ceil(height / strides), ceil(width / strides), out]."""
        rules = self.arrangement
        out_features = self.features * (4 if self.bottleneck else 1)
        widths = (self.features, self.features, out_features) if self.bottleneck else (self.features, out_features)
        sizes = (1, 3, 1) if self.bottleneck else (3, 3)
        strided = rules.strided_conv if self.bottleneck else 1
        y = entry = x
        for number, (features, size) in enumerate(zip(widths, sizes, strict=True), start=1):
            last = number == len(sizes)
            if rules.preactivation:
                y = self._norm(f"norm{number}")(y, use_batch_statistics=use_batch_statistics, relu=True)
                entry = y if number == 1 else entry
            residual = self._shortcut(x, entry, out_features, use_batch_statistics) if last else None
            conv = self._conv(f"conv{number}", features, size, self.strides if number == strided else 1)
            if rules.preactivation:
                y = conv(y, residual=residual)
                continue
            norm = self._norm(f"norm{number}", fresh_scale=0.0 if last else 1.0)
            y = norm(y, conv=conv, use_batch_statistics=use_batch_statistics, residual=residual, relu=True)
        return y

    def _shortcut(self, x: jax.Array, entry: jax.Array, features: int, use_batch_statistics: bool) -> jax.Array:
        """The term added at the end; entry: x, or in a pre-activated block the input of its first convolution."""
        if x.shape[-1] == features:
            return x[:, :: self.strides, :: self.strides]  # Keras says MaxPooling2D(1, strides)
        conv = self._conv("shortcut_conv", features, 1, self.strides)
        if self.arrangement.preactivation:
            return conv(entry)
        return self._norm("shortcut_norm")(entry, conv=conv, use_batch_statistics=use_batch_statistics)

    def _conv(self, name: str, features: int, size: int, strides: int) -> Conv:
        dilation, biased = self.dilation if size > 1 else 1, name in self.arrangement.biased
        padding = dilation * (size // 2)
        return Conv(features, size, strides, padding, biased, dilation, numerics=self.numerics, name=name)

    def _norm(self, name: str, fresh_scale: float = 1.0) -> BatchNorm:
        rules, scale_init = self.arrangement, nn.initializers.constant(fresh_scale)
        return BatchNorm(rules.epsilon, rules.momentum, scale_init, numerics=self.numerics, name=name)


class Layer(Module):
    """Residual blocks `block1 .. blockN` of one width; the first, or pre-activated the last, may halve the map.

    dilations: of the 3x3 convolutions of the first block, and of the others.
    final_norm: a BatchNorm `norm` with ReLU at the end.
    """

    features: int
    num_blocks: int
    strides: int
    bottleneck: bool
    arrangement: Arrangement = TORCHVISION
    dilations: tuple[int, int] = (1, 1)
    final_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, ceil(height / strides), ceil(width / strides), out]."""
        rules = self.arrangement
        strided = self.num_blocks if rules.preactivation else 1
        for number in range(1, self.num_blocks + 1):
            block = Block(
                self.features,
                self.strides if number == strided else 1,
                self.bottleneck,
                rules,
                self.dilations[number > 1],
                name=f"block{number}",
                numerics=self.numerics,
            )
            x = block(x, use_batch_statistics=use_batch_statistics)
        if self.final_norm:
            norm = BatchNorm(rules.epsilon, rules.momentum, numerics=self.numerics, name="norm")
            x = norm(x, use_batch_statistics=use_batch_statistics, relu=True)
        return x


class ResNet(Staged):
    """Stages `stem, layer1 .. layer4, head`.

    The BatchNorm that closes a pre-activated network ends layer4: it normalises what layer4 adds up, has statistics
    of the source images like every other norm there, and the head stays one dense layer that can be replaced.
    """

    num_classes: int
    num_blocks: tuple[int, int, int, int]
    bottleneck: bool
    arrangement: Arrangement = TORCHVISION
    pooling: str = "average"
    normalised_features: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return (*ENCODER_STAGES, "head")

    def setup(self) -> None:
        """One submodule a stage."""
        late = self.arrangement.preactivation
        self.stem = Stem(self.arrangement, numerics=self.numerics)
        for index, strides in enumerate((2, 2, 2, 1) if late else (1, 2, 2, 2)):
            layer = Layer(
                FEATURES * 2**index,
                self.num_blocks[index],
                strides,
                self.bottleneck,
                self.arrangement,
                final_norm=late and index == len(self.num_blocks) - 1,
                numerics=self.numerics,
            )
            setattr(self, f"layer{index + 1}", layer)
        self.head = Head(self.num_classes, self.dropout, self.pooling, self.normalised_features, numerics=self.numerics)


class EncoderStem(Stem):
    """The stem behind what flows beside its map: with `skips` the images and the map before the maximum.

    Without, an array without features that carries the size of the images.
    """

    pooled: bool = False
    skips: bool = True

    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> Any:
        """x: [batch, height, width, channels] -> (images, [batch, ceil(height / 2), ..., 64], its pooled map).

        Or ([batch, height, width, 0], the pooled map).
        """
        images = x[0] if isinstance(x, tuple) else x  # beside an image of ones, see `preprocessing.folded`
        images = images if self.skips else images[..., :0]
        map_ = super().__call__(x, train=train, use_batch_statistics=use_batch_statistics)
        native = self.numerics.native
        pooled = ops.max_pool(map_, window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), native=native)
        return (images, map_, pooled) if self.skips else (images, pooled)


class EncoderLayer(Layer):
    """A layer on the last of several maps; with `skips`, its input skips ahead too."""

    skips: bool = True

    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> Any:
        """x: (*skips, map) -> (*skips, map, new map), or (*skips, new map)."""
        beside = x if self.skips else x[:-1]
        return (*beside, super().__call__(x[-1], train=train, use_batch_statistics=use_batch_statistics))


class EncoderDecoder(Staged):
    """Stages `stem, layer1 .. layer4, decoder, head`; logits [batch, height, width, classes] for any size.

    The encoder's parameters have the paths of the ResNet it names, so that a classifier's weights start it.
    """

    num_classes: int
    encoder: str
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return (*ENCODER_STAGES, "decoder", "head")


def add_encoder(
    network: EncoderDecoder,
    *,
    skips: bool,
    strides: tuple[int, ...] = (1, 2, 2, 2),
    dilations: tuple[tuple[int, int], ...] = ((1, 1),) * 4,
) -> None:
    """Gives a network in its `setup` the stages `stem, layer1 .. layer4`; strides and dilations: see `Layer`.

    skips: hand on, beside the last map, the images and the larger maps; else only the size of the images.
    """
    network.stem = EncoderStem(skips=skips, numerics=network.numerics)
    for index, num_blocks in enumerate(LAYERS[network.encoder]):
        layer = EncoderLayer(
            FEATURES * 2**index,
            num_blocks,
            strides[index],
            network.encoder in BOTTLENECK,
            dilations=dilations[index],
            skips=skips and index > 0,  # the stem's map skips before its maximum
            numerics=network.numerics,
        )
        setattr(network, f"layer{index + 1}", layer)
