"""DeepLabV3 (Chen et al. 2017, arXiv 1706.05587) in torchvision's arrangement."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax.models.layers import BatchNorm, Conv, Staged
from covidjax.models.resnet import LAYERS, Layer, Stem
from covidjax.models.upsampling import resize_bilinear

BACKBONES = {f"deeplabv3_{name}": name for name in ("resnet50", "resnet101")}
# layer: (strides, dilations of its first block and of the others); strides of layer3 and layer4 become dilation.
ATROUS = {"layer1": (1, (1, 1)), "layer2": (2, (1, 1)), "layer3": (1, (1, 2)), "layer4": (1, (2, 4))}
RATES = (12, 24, 36)
FEATURES = 256


class SizedStem(Stem):
    """The stem of a ResNet; beside its map flows an array without features that carries the size of the images."""

    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> Any:
        """x: [batch, height, width, channels] -> ([batch, height, width, 0], [batch, ceil(height / 4), ..., 64])."""
        images = x[0] if isinstance(x, tuple) else x  # beside an image of ones, see `preprocessing.folded`
        return images[..., :0], super().__call__(x, train=train, use_batch_statistics=use_batch_statistics)


class SizedLayer(Layer):
    """A layer of a ResNet on the second array of a pair."""

    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> Any:
        """x: (size, map) -> (size, new map)."""
        size, map_ = x
        return size, super().__call__(map_, train=train, use_batch_statistics=use_batch_statistics)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU; the map keeps its size."""

    kernel_size: int
    dilation: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, height, width, 256]."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype, "native": self.native}
        padding = self.dilation * (self.kernel_size // 2)
        conv = Conv(FEATURES, self.kernel_size, padding=padding, dilation=self.dilation, name="conv", **kinds)
        norm = BatchNorm(name="norm", **kinds)
        return norm(x, conv=conv, use_batch_statistics=use_batch_statistics, relu=True)


class Decoder(nn.Module):
    """Atrous spatial pyramid pooling: `point`, `atrous12 .. atrous36` and `pooled`, joined by `project`; then `last`.

    dropout: after `project`; torchvision has 0.5 there.
    """

    dropout: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> Any:
        """x: (size, [batch, height, width, 2048]) -> (size, [batch, height, width, 256])."""
        size, map_ = x
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype, "native": self.native}

        def branch(name: str, inputs: jax.Array, kernel_size: int, dilation: int = 1) -> jax.Array:
            module = ConvNorm(kernel_size, dilation, name=name, **kinds)
            return module(inputs, use_batch_statistics=use_batch_statistics)

        branches = [branch("point", map_, 1)]
        branches += [branch(f"atrous{rate}", map_, 3, rate) for rate in RATES]
        pooled = branch("pooled", jnp.mean(map_, axis=(1, 2), keepdims=True), 1)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        map_ = branch("project", jnp.concatenate(branches, axis=-1), 1)
        map_ = nn.Dropout(self.dropout, deterministic=not train)(map_)
        return size, branch("last", map_, 3)


class Head(nn.Module):
    """A 1x1 convolution to the logits, and their interpolation to the size of the images."""

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: (size, [batch, height, width, 256]) -> logits [batch, *size, num_classes]."""
        size, map_ = x
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype, "native": self.native}
        kernel_init = nn.initializers.lecun_normal()
        conv = Conv(self.num_classes, 1, use_bias=True, kernel_init=kernel_init, name="conv", **kinds)
        return resize_bilinear(conv(map_), size.shape[1:3])


class DeepLabV3(Staged):
    """Stages `stem, layer1 .. layer4, decoder, head`; logits [batch, height, width, classes] for any size.

    The backbone's parameters have the paths of the ResNet it names. Its last map is an eighth of the images' size.
    """

    num_classes: int
    backbone: str
    dropout: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        return ("stem", "layer1", "layer2", "layer3", "layer4", "decoder", "head")

    def setup(self) -> None:
        """One submodule a stage."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype, "native": self.native}
        self.stem = SizedStem(**kinds)
        for index, (name, num_blocks) in enumerate(zip(ATROUS, LAYERS[self.backbone], strict=True)):
            strides, dilations = ATROUS[name]
            layer = SizedLayer(64 * 2**index, num_blocks, strides, True, dilations=dilations, **kinds)
            setattr(self, name, layer)
        self.decoder = Decoder(self.dropout, **kinds)
        self.head = Head(self.num_classes, **kinds)
