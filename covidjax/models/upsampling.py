"""Larger maps: bilinear interpolation, and the transposed 2x2 convolution of the U-Net."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from covidjax import ops

UPSAMPLINGS = ("transposed", "bilinear")
# Each output of the transposed convolution has one tap: the four positions of its kernel are no fan.
lecun_normal = nn.initializers.lecun_normal(batch_axis=(0, 1))


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """x: [batch, height, width, features] -> [batch, *size, features], interpolated between centres of pixels.

    For enlarging: PyTorch's `interpolate(mode='bilinear', align_corners=False)`, whatever the ratio. The weights are
    worked out in float64: those of `jax.image.resize` are float32 for every input.
    """
    rows, columns = (_weights(*pair).astype(x.dtype) for pair in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision=lax.Precision.HIGHEST)


def _weights(before: int, after: int) -> np.ndarray:
    """The part of each of `before` positions in each of `after`: [after, before], at most two a row."""
    positions = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(before)))


class UpConv(nn.Module):
    """Transposed 2x2 convolution with stride 2; parameters `kernel` [2, 2, in, out] and `bias` [out].

    The kernel is that of PyTorch's ConvTranspose2d with its axes [in, out, 2, 2] moved, not flipped.
    """

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs: [batch, height, width, in_features] -> [batch, 2 * height, 2 * width, features]."""
        kernel = self.param("kernel", lecun_normal, (2, 2, inputs.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        outputs = ops.transposed_convolution(inputs.astype(self.dtype), kernel.astype(self.dtype), native=self.native)
        return outputs + bias.astype(self.dtype)
