"""DeepLabV3 (Chen et al. 2017, arXiv 1706.05587) in torchvision's arrangement."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax.models.layers import BatchNorm, Conv, Module, PixelHead, resize_bilinear
from covidjax.models.resnet import EncoderDecoder, add_encoder

BACKBONES = {f"deeplabv3_{name}": name for name in ("resnet50", "resnet101")}
# Of layer1 .. layer4; dilations: of the first block and of the others.
STRIDES, DILATIONS = (1, 2, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4))
RATES = (12, 24, 36)
FEATURES = 256


class ConvNorm(Module):
    """Convolution, BatchNorm, ReLU; the map keeps its size."""

    kernel_size: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height, width, 256]."""
        size, dilation = self.kernel_size, self.dilation
        padding = dilation * (size // 2)
        conv = Conv(FEATURES, size, padding=padding, dilation=dilation, numerics=self.numerics, name="conv")
        norm = BatchNorm(numerics=self.numerics, name="norm")
        return norm(x, conv=conv, use_batch_statistics=use_batch_statistics, relu=True)


class Decoder(Module):
    """Atrous spatial pyramid pooling: `point`, `atrous12 .. atrous36` and `pooled`, joined by `project`; then `last`.

    dropout: after `project`; torchvision has 0.5 there.
    """

    dropout: float

    @nn.compact
    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> Any:
        """x: (size, [batch, height, width, 2048]) -> (size, [batch, height, width, 256])."""
        size, map_ = x

        def branch(name: str, inputs: jax.Array, kernel_size: int, dilation: int = 1) -> jax.Array:
            module = ConvNorm(kernel_size, dilation, numerics=self.numerics, name=name)
            return module(inputs, use_batch_statistics=use_batch_statistics)

        branches = [branch("point", map_, 1)]
        branches += [branch(f"atrous{rate}", map_, 3, rate) for rate in RATES]
        pooled = branch("pooled", jnp.mean(map_, axis=(1, 2), keepdims=True), 1)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        map_ = branch("project", jnp.concatenate(branches, axis=-1), 1)
        map_ = nn.Dropout(self.dropout, deterministic=not train)(map_)
        return size, branch("last", map_, 3)


class Head(PixelHead):
    """A 1x1 convolution to the logits, and their interpolation to the size of the images."""

    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: (size, [batch, height, width, 256]) -> logits [batch, *size, num_classes]."""
        size, map_ = x
        logits = super().__call__(map_, train=train, use_batch_statistics=use_batch_statistics)
        return resize_bilinear(logits, size.shape[1:3])


class DeepLabV3(EncoderDecoder):
    """The last map of its encoder is an eighth of the images' size; the strides of layer3 and layer4 are dilation."""

    def setup(self) -> None:
        """One submodule a stage."""
        add_encoder(self, skips=False, strides=STRIDES, dilations=DILATIONS)
        self.decoder = Decoder(self.dropout, numerics=self.numerics)
        self.head = Head(self.num_classes, numerics=self.numerics)
