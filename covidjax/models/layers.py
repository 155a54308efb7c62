"""Parameterised layers over `covidjax.ops`, and the staged network that every model is."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from covidjax import ops
from covidjax.errors import UserError

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, as torchvision initialises
lecun_normal = nn.initializers.lecun_normal()  # keeps the scale where no ReLU follows
POOLINGS = ("average", "max", "flatten")


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a network computes.

    dtype: of activations; param_dtype: of parameters and statistics; native: whether operations may be native ones, see
    `ops`.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    native: bool = False


class Module(nn.Module, kw_only=True):
    """A module that computes as `numerics` says."""

    numerics: Numerics = Numerics()

    def weight(self, name: str, init: Callable[..., Any], *shape: int) -> jax.Array:
        """A parameter [*shape] in the dtype of the activations."""
        return self.param(name, init, shape, self.numerics.param_dtype).astype(self.numerics.dtype)


class Conv(Module):
    """Convolution with explicit symmetric padding; parameters `kernel` [kh, kw, in, out] and `bias` [out].

    dilation: the distance of neighbouring taps of the kernel in the input. depthwise: each feature by itself, with a
    kernel [kh, kw, 1, features].
    """

    features: int
    kernel_size: int
    strides: int = 1
    padding: int = 0
    use_bias: bool = False
    dilation: int = 1
    depthwise: bool = False
    kernel_init: Callable[..., Any] = he_normal

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array | tuple[jax.Array, ...],
        *,
        affine: tuple[jax.Array, jax.Array] | None = None,
        residual: jax.Array | None = None,
        relu: bool = False,
    ) -> jax.Array:
        """`relu(convolution * factor + offset + residual)`.

        inputs: [batch, height, width, in_features] -> [batch, out_height, out_width, features].
        A tuple stands for its arrays side by side in in_features; one with batch 1 is the same for all images, and is
        convolved once. affine: factor and offset [features], which go into kernel and bias.
        """
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        widths = [part.shape[-1] for part in parts]
        dtype, size = self.numerics.dtype, self.kernel_size
        in_features = 1 if self.depthwise else sum(widths)
        kernel = self.weight("kernel", self.kernel_init, size, size, in_features, self.features)
        bias = self.weight("bias", nn.initializers.zeros, self.features) if self.use_bias else None
        if affine is not None:
            factor, offset = (values.astype(dtype) for values in affine)
            kernel, bias = kernel * factor, offset if bias is None else bias * factor + offset
        convolve = partial(
            ops.convolution,
            strides=(self.strides,) * 2,
            padding=((self.padding, self.padding),) * 2,
            dilation=(self.dilation,) * 2,
            native=self.numerics.native,
        )
        if len(parts) == 1:
            return convolve(parts[0].astype(dtype), kernel, bias=bias, residual=residual, relu=relu)
        kernels = jnp.split(kernel, np.cumsum(widths)[:-1], axis=2)
        outputs, *others = (convolve(part.astype(dtype), k) for part, k in zip(parts, kernels, strict=True))
        return ops.add_and_relu(outputs, *others, bias, residual, relu=relu)


class BatchNorm(Module):
    """Batch normalisation over `batch_stats` {mean, var}; parameters `scale` and `bias` [features].

    momentum: the part of the running statistics that a step keeps (PyTorch's `momentum` is one minus this).
    The running variance is the biased one, as in Keras and Flax; PyTorch accumulates the unbiased one.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    scale_init: Callable[..., Any] = nn.initializers.ones
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        inputs: Any,
        *,
        use_batch_statistics: bool | str,
        conv: Conv | None = None,
        residual: jax.Array | None = None,
        relu: bool = False,
    ) -> jax.Array:
        """`relu(normalised + residual)`, by the running statistics, or by those of the batch.

        inputs: [batch, ..., features]; with conv, what that takes: its outputs are normalised then. A native
        convolution has the running statistics in its kernel, and everything is one operation.
        use_batch_statistics: a string is the mapped axis over whose devices the batch lies.
        """
        inside = conv is not None and self.numerics.native and not use_batch_statistics and not self.is_initializing()
        if conv is not None and not inside:
            inputs = conv(inputs)
        features = (inputs.shape[-1] if conv is None else conv.features,)
        param_dtype = self.numerics.param_dtype
        scale = self.param("scale", self.scale_init, features, param_dtype)
        bias = self.param("bias", self.bias_init, features, param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, param_dtype)
        if inside:
            affine = ops.affine(scale, bias, running_mean.value, running_var.value, epsilon=self.epsilon)
            return conv(inputs, affine=affine, residual=residual, relu=relu)  # type: ignore[misc]
        inputs = inputs.astype(self.numerics.dtype)
        if not use_batch_statistics:
            mean, var = running_mean.value, running_var.value
            outputs = ops.normalise(inputs, scale, bias, mean, var, epsilon=self.epsilon)
            return ops.add_and_relu(outputs, residual, relu=relu)
        axis = use_batch_statistics if isinstance(use_batch_statistics, str) else None
        shift, native = running_mean.value, self.numerics.native
        outputs, mean, var = ops.batch_norm(
            inputs, scale, bias, shift, self.epsilon, axis, residual=residual, relu=relu, native=native
        )
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return outputs


class Dense(Module):
    """Matrix product with `kernel` [in, out] and `bias` [out]."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """inputs: [batch, in_features] -> [batch, features]."""
        kernel = self.weight("kernel", nn.initializers.glorot_uniform(), inputs.shape[-1], self.features)
        bias = self.weight("bias", nn.initializers.zeros, self.features)
        return inputs.astype(self.numerics.dtype) @ kernel + bias


class LayerNorm(Module):
    """Mean 0 and variance 1 over the features of each position, then `scale` and `bias` [features].

    Ba, Kiros, Hinton 2016 (arXiv 1607.06450). The statistics are float32 where what flows is half-precision.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, ..., features] -> the same shape."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.numerics.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.numerics.param_dtype)
        wide = x.astype(jnp.promote_types(self.numerics.dtype, jnp.float32))
        centred = wide - jnp.mean(wide, -1, keepdims=True)
        rate = lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-6)
        return (centred * rate * scale + bias).astype(self.numerics.dtype)


class Head(Module):
    """One number a feature or all of them (`pooling`), dropout, one dense layer to the logits.

    normalised_features: what the dense layer takes is `scaled_unit_features`; normalised: and, before, LayerNorm.
    """

    num_classes: int
    dropout: float = 0.0
    pooling: str = "average"
    normalised_features: bool = False
    normalised: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, features], or what `reduce` makes of it -> logits [batch, num_classes]."""
        x = self.reduce(x)
        x = LayerNorm(numerics=self.numerics, name="norm")(x) if self.normalised else x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = scaled_unit_features(self, x) if self.normalised_features else x
        return Dense(self.num_classes, numerics=self.numerics, name="dense")(x)

    def reduce(self, x: jax.Array) -> jax.Array:
        """The pooling, of a map that is not pooled yet: [batch, height, width, features] -> [batch, features]."""
        return pool(x, self.pooling) if x.ndim == 4 else x


class PixelHead(Module):
    """A 1x1 convolution to the logits of every pixel."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Any, *, train: bool, use_batch_statistics: bool) -> jax.Array:
        """x: [batch, height, width, features] -> logits [batch, height, width, num_classes]."""
        conv = Conv(self.num_classes, 1, use_bias=True, kernel_init=lecun_normal, numerics=self.numerics, name="conv")
        return conv(x)


def scaled_unit_features(module: Any, x: jax.Array) -> jax.Array:
    """Features of length one times `scale` [], a parameter of the module that calls.

    x: [batch, features] -> the same shape, float32 for half-precision features.
    Before a dense layer and softmax cross-entropy this is the L2-constrained softmax of Ranjan et al. 2017 (arXiv
    1703.09507, 3.1), which Xu 2021 plans for small data sets of poor quality (chapter 3: "adding a feature
    normalization layer and a scale amplification layer to the network"). Training cannot lengthen the features of good
    images in place of learning the poor ones. The scale begins where features have a mean square of one.
    """
    scale = module.param("scale", nn.initializers.constant(np.sqrt(x.shape[-1])), (), module.numerics.param_dtype)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return scale * x * lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def pool(x: jax.Array, pooling: str) -> jax.Array:
    """x: [batch, height, width, features] -> [batch, features], or [batch, height * width * features] for 'flatten'.

    Flattening runs over height, width, features, as in Keras; PyTorch flattens features, height, width.
    """
    if pooling == "flatten":
        return x.reshape(x.shape[0], -1)
    return ops.global_max_pool(x) if pooling == "max" else ops.global_average_pool(x)


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


class Staged(Module):
    """A network as an ordered tuple of named stages; the top-level keys of its variables are the stage names.

    A subclass names its stages in `stages` and creates a submodule of each name in `setup`. Each stage is called as
    `stage(x, train=..., use_batch_statistics=...)`; what flows between stages is a pytree.
    """

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names, input first."""
        raise NotImplementedError

    @property
    def whole(self) -> "Staged":
        """The published network, of which this may have the first stages and the head alone."""
        return self

    def __call__(
        self,
        x: Any,
        *,
        train: bool = False,
        batch_norm_stages: tuple[str, ...] = (),
        batch_norm_axis: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Any:
        """Runs the stages from `start` up to, not including, `stop` (None: from the first, to the end).

        x: [batch, height, width, channels] for the whole network, else what flows into `start`.
        train: dropout on. batch_norm_stages: the stages whose BatchNorm runs on (and updates) batch statistics;
        batch_norm_axis: the mapped axis over whose devices these are taken, None for those of this device.
        Returns logits [batch, classes], or what flows into `stop`. Raises UserError for an unknown stage.
        """
        for name in span(self.stages, start, stop):
            statistics = (batch_norm_axis or True) if name in batch_norm_stages else False
            x = getattr(self, name)(x, train=train, use_batch_statistics=statistics)
        return x

    def reduced(self, x: Any, stage: str) -> Any:
        """The input of `stage` after that stage's `reduce`, its beginning without parameters and chance.

        The stage takes either; this one is smaller, and is what is cached. Stages without `reduce` get x as it is.
        """
        module = getattr(self, stage)
        return module.reduce(x) if hasattr(module, "reduce") else x


def span(stages: tuple[str, ...], start: str | None = None, stop: str | None = None) -> tuple[str, ...]:
    """The stages from `start` up to, not including, `stop`. Raises UserError for an unknown stage."""
    for name in (start, stop):
        if name is not None and name not in stages:
            raise UserError(f"there is no stage {name!r}: the stages are {', '.join(stages)}")
    first = 0 if start is None else stages.index(start)
    last = len(stages) if stop is None else stages.index(stop)
    return stages[first:last]
