"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597), and U-Nets whose contracting path is a ResNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax import ops
from covidjax.models.attention import SelfAttention
from covidjax.models.dynamic_unet import DynamicDecoder
from covidjax.models.layers import (
    BatchNorm,
    Conv,
    Module,
    PixelHead,
    Staged,
    lecun_normal,
    resize_bilinear,
)
from covidjax.models.resnet import EncoderDecoder, add_encoder

ENCODERS = {f"unet_{name}": name for name in ("resnet18", "resnet34", "resnet50")}
UPSAMPLINGS = ("transposed", "bilinear")
DECODERS = ("unet", "fastai")
LEVELS = 4
DECODER_FEATURES = (256, 128, 64, 64, 32)
ATTENTION_AFTER = "up2"

# What flows between stages: a map, alone or behind the maps that skip ahead, the largest first.
Flow = jax.Array | tuple[jax.Array, ...]


class Down(Module):
    """Two 3x3 convolutions, whose result skips ahead, then a 2x2 maximum; an odd last row or column stands alone."""

    features: int
    batch_norm: bool

    @nn.compact
    def __call__(self, x: Flow, *, train: bool, use_batch_statistics: bool) -> Flow:
        """x: (*skips, [batch, height, width, channels]) -> (*skips, skip, [batch, ceil(height / 2), ..., features])."""
        *skips, map_ = x if isinstance(x, tuple) else (x,)
        skip = _two_convolutions(self, map_, use_batch_statistics)
        padding = ((0, skip.shape[1] % 2), (0, skip.shape[2] % 2))
        return (*skips, skip, ops.max_pool(skip, window=(2, 2), strides=(2, 2), padding=padding))


class Middle(Module):
    """Two 3x3 convolutions at the lowest resolution, then dropout."""

    features: int
    batch_norm: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Flow, *, train: bool, use_batch_statistics: bool) -> Flow:
        """x: (*skips, [batch, height, width, channels]) -> (*skips, [batch, height, width, features])."""
        *skips, map_ = x
        map_ = _two_convolutions(self, map_, use_batch_statistics)
        return (*skips, nn.Dropout(self.dropout, deterministic=not train)(map_))


class Up(Module):
    """The map at the size of the last skip and `features` wide, joined with that skip; two 3x3 convolutions.

    transposed: a 2x2 convolution with stride 2, cut to the skip's size where that is odd.
    bilinear: a 1x1 convolution, then interpolation to the skip's size (the two commute; this order costs a quarter).
    """

    features: int
    upsampling: str
    batch_norm: bool

    @nn.compact
    def __call__(self, x: Flow, *, train: bool, use_batch_statistics: bool) -> Flow:
        """x: (*skips, skip, map) -> (*skips, [batch, height, width, features]) of the skip's height and width."""
        *skips, skip, map_ = x
        height, width = skip.shape[1:3]
        if self.upsampling == "transposed":
            map_ = UpConv(self.features, numerics=self.numerics, name="up_conv")(map_)[:, :height, :width]
        else:
            conv = Conv(
                self.features, 1, use_bias=True, kernel_init=lecun_normal, numerics=self.numerics, name="up_conv"
            )
            map_ = resize_bilinear(conv(map_), (height, width))
        map_ = jnp.concatenate([skip.astype(self.numerics.dtype), map_], axis=-1)
        map_ = _two_convolutions(self, map_, use_batch_statistics)
        return (*skips, map_) if skips else map_


class UpConv(Module):
    """Transposed 2x2 convolution with stride 2; parameters `kernel` [2, 2, in, out] and `bias` [out].

    The kernel is that of PyTorch's ConvTranspose2d with its axes [in, out, 2, 2] moved, not flipped. Each output has
    one tap: the four positions of the kernel are no fan.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs: [batch, height, width, in_features] -> [batch, 2 * height, 2 * width, features]."""
        kernel_init = nn.initializers.lecun_normal(batch_axis=(0, 1))
        kernel = self.weight("kernel", kernel_init, 2, 2, inputs.shape[-1], self.features)
        bias = self.weight("bias", nn.initializers.zeros, self.features)
        inputs = inputs.astype(self.numerics.dtype)
        return ops.transposed_convolution(inputs, kernel, native=self.numerics.native) + bias


class UNet(Staged):
    """Stages `down1 .. down4, middle, up1 .. up4, head`; logits [batch, height, width, classes] for any size.

    The convolutions pad with zeros, where Ronneberger's lose their border, so that logits lie on the input's pixels.
    batch_norm: BatchNorm after each 3x3 convolution, in place of its bias; Ronneberger has none.
    Parameters for one gray channel and two classes, without and with BatchNorm, beside those that Xu prints (their
    decimals are cut off, not rounded):

        width  upsampling  without     with        Xu
        64     transposed  31 030 658  31 036 546  "about 31 M"
        64     bilinear    28 941 698  28 947 586  "about 28 M"
        32     transposed   7 759 554   7 762 498  "7.75 M"
        16     transposed   1 940 834   1 942 306  "less than 2 M"
    """

    num_classes: int
    width: int = 64
    upsampling: str = "transposed"
    batch_norm: bool = True
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        levels = range(1, LEVELS + 1)
        return (*(f"down{level}" for level in levels), "middle", *(f"up{level}" for level in levels), "head")

    def setup(self) -> None:
        """One submodule a stage."""
        widths = [self.width * 2**level for level in range(LEVELS)]
        for level in range(LEVELS):
            setattr(self, f"down{level + 1}", Down(widths[level], self.batch_norm, numerics=self.numerics))
            up = Up(widths[-1 - level], self.upsampling, self.batch_norm, numerics=self.numerics)
            setattr(self, f"up{level + 1}", up)
        self.middle = Middle(2 * widths[-1], self.batch_norm, self.dropout, numerics=self.numerics)
        self.head = PixelHead(self.num_classes, numerics=self.numerics)


class Decoder(Module):
    """Dropout on the deepest map, then `up1 .. up5` with BatchNorm, the last joining the images themselves.

    attention: self-attention `attention` after `up2`, at an eighth of the images' resolution, where Xu's
    `unet_learner(..., self_attention=True)` of fastai 1 has it: in the block that joins layer2, the second of four.
    """

    upsampling: str
    attention: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Flow, *, train: bool, use_batch_statistics: bool) -> Flow:
        """x: (images, stem, layer1, layer2, layer3, layer4) -> [batch, height, width, 32] at the images' size."""
        modes = {"train": train, "use_batch_statistics": use_batch_statistics}
        x = (*x[:-1], nn.Dropout(self.dropout, deterministic=not train)(x[-1]))
        for number, features in enumerate(DECODER_FEATURES, start=1):
            name = f"up{number}"
            x = Up(features, self.upsampling, True, numerics=self.numerics, name=name)(x, **modes)
            if self.attention and name == ATTENTION_AFTER:
                x = (*x[:-1], SelfAttention(numerics=self.numerics, name="attention")(x[-1]))
        return x


class UNetResNet(EncoderDecoder):
    """The images, the stem's map and those of layer1 to layer3 skip ahead to the decoder.

    decoder_name: 'unet', or 'fastai', the network of fastai 1's `unet_learner`, which does not read `upsampling`. With
    resnet34 and three-channel images it has 41 220 968 + 100 parameters a class, 184 321 more with attention.
    """

    upsampling: str = "transposed"
    attention: bool = False
    decoder_name: str = "unet"

    def setup(self) -> None:
        """One submodule a stage."""
        add_encoder(self, skips=True)
        self.decoder: DynamicDecoder | Decoder
        if self.decoder_name == "fastai":
            self.decoder = DynamicDecoder(self.attention, self.dropout, numerics=self.numerics)
        else:
            self.decoder = Decoder(self.upsampling, self.attention, self.dropout, numerics=self.numerics)
        self.head = PixelHead(self.num_classes, numerics=self.numerics)


def _two_convolutions(module: Down | Middle | Up, x: jax.Array, use_batch_statistics: bool) -> jax.Array:
    """Twice a 3x3 convolution, BatchNorm if the module has it, ReLU; submodules of the module that calls."""
    for number in (1, 2):
        bias, name = not module.batch_norm, f"conv{number}"
        conv = Conv(module.features, 3, padding=1, use_bias=bias, numerics=module.numerics, name=name)
        if module.batch_norm:
            norm = BatchNorm(numerics=module.numerics, name=f"norm{number}")
            x = norm(x, conv=conv, use_batch_statistics=use_batch_statistics, relu=True)
        else:
            x = conv(x, relu=True)
    return x
