"""The decoder of fastai 1's DynamicUnet: it enlarges by pixel shuffles and normalises what skips ahead.

fastai 1.0.61, `vision/models/unet.py` and `layers.py`, as `unet_learner` calls it by default: no norm behind its
convolutions, which have biases, and no blur.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax.models.attention import SelfAttention
from covidjax.models.layers import BatchNorm, Conv, Module

he_normal_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # torch.nn.init.kaiming_normal_
FRESH_OFFSET = 1e-3  # of each BatchNorm, in fastai's `batchnorm_2d`


class PixelShuffle(Module):
    """A 1x1 convolution `conv`, ReLU, and four features of a position side by side as 2 x 2 positions.

    Feature `4 c + 2 i + j` of the convolution is feature c of row i and column j, as in torch.nn.PixelShuffle. ICNR
    (Aitken et al. 2017, arXiv 1707.02937): the four start equal, which enlarges by repetition.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, channels] -> [batch, 2 * height, 2 * width, features]."""
        conv = Conv(
            4 * self.features, 1, use_bias=True, kernel_init=repeated_he_normal, numerics=self.numerics, name="conv"
        )
        batch, height, width, _ = x.shape
        parts = conv(x, relu=True).reshape(batch, height, width, self.features, 2, 2)
        return parts.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, self.features)


def repeated_he_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """ICNR: a kernel [..., features] whose features are equal in fours."""
    return jnp.repeat(he_normal_in(key, (*shape[:-1], shape[-1] // 4), dtype), 4, axis=-1)


class DynamicUp(Module):
    """The map, enlarged and half as wide, beside the BatchNorm of the last skip; ReLU; two 3x3 convolutions with ReLU.

    halve: they are half as wide as what they take.
    """

    halve: bool = False

    @nn.compact
    def __call__(self, x: tuple[jax.Array, ...], *, use_batch_statistics: bool) -> tuple[jax.Array, ...]:
        """x: (*skips, skip, map) -> (*skips, [batch, height, width, features]) of the skip's height and width."""
        *skips, skip, map_ = x
        height, width = skip.shape[1:3]
        enlarged = PixelShuffle(map_.shape[-1] // 2, numerics=self.numerics, name="shuffle")(map_)
        # One row or column too many is what interpolation to the nearest pixel leaves out, too.
        enlarged = enlarged[:, :height, :width]
        skip = _norm(self, "skip_norm")(skip, use_batch_statistics=use_batch_statistics, relu=True)
        map_ = jnp.concatenate([enlarged, skip], axis=-1)  # the enlarged map is not negative
        features = map_.shape[-1] // (2 if self.halve else 1)
        return (*skips, _two_convolutions(self, map_, (features, features)))


class DynamicDecoder(Module):
    """BatchNorm `norm`, a middle twice as wide, `up1 .. up4`, a pixel shuffle, and a residual block with the images.

    attention: self-attention `attention` after `up2`, the block that joins layer2, as `self_attention=True` has it.
    dropout: on the deepest map; fastai has none.
    """

    attention: bool
    dropout: float

    @nn.compact
    def __call__(self, x: tuple[jax.Array, ...], *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: (images, stem, layer1, layer2, layer3, layer4) -> [batch, height, width, features] at the images' size."""
        *skips, map_ = x
        map_ = nn.Dropout(self.dropout, deterministic=not train)(map_)
        map_ = _norm(self, "norm")(map_, use_batch_statistics=use_batch_statistics, relu=True)
        map_ = _two_convolutions(self, map_, (2 * map_.shape[-1], map_.shape[-1]), "middle_")
        x = (*skips, map_)
        for number in range(1, 5):
            up = DynamicUp(halve=number == 4, numerics=self.numerics, name=f"up{number}")
            x = up(x, use_batch_statistics=use_batch_statistics)
            if self.attention and number == 2:
                x = (*x[:-1], SelfAttention(numerics=self.numerics, name="attention")(x[-1]))
        images, map_ = x
        map_ = PixelShuffle(map_.shape[-1], numerics=self.numerics, name="shuffle")(map_)
        map_ = map_[:, : images.shape[1], : images.shape[2]]
        map_ = jnp.concatenate([map_, images.astype(self.numerics.dtype)], axis=-1)
        return map_ + _two_convolutions(self, map_, (map_.shape[-1],) * 2)


def _norm(module: Module, name: str) -> BatchNorm:
    return BatchNorm(bias_init=nn.initializers.constant(FRESH_OFFSET), numerics=module.numerics, name=name)


def _two_convolutions(module: Module, x: jax.Array, widths: tuple[int, int], prefix: str = "") -> jax.Array:
    """Twice a 3x3 convolution with bias, then ReLU; submodules of the module that calls."""
    for number, features in enumerate(widths, start=1):
        conv = Conv(
            features,
            3,
            padding=1,
            use_bias=True,
            kernel_init=he_normal_in,
            numerics=module.numerics,
            name=f"{prefix}conv{number}",
        )
        x = conv(x, relu=True)
    return x
