"""What residual branches of ConvNeXt and of transformers are made of."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import lax

from covidjax import ops
from covidjax.models.layers import Module

truncated_normal = nn.initializers.truncated_normal(0.02)


class Product(Module):
    """Matrix product over the last axis with `kernel` [in, out] and `bias` [out], in a native operation where asked.

    rank: with it the product has beside its kernel `lora_down` [in, rank] and `lora_up` [rank, out], which add
    `x @ lora_down @ lora_up` (Hu et al. 2021, arXiv 2106.09685, 4.1, alpha = rank). `lora_up` starts at zero.
    """

    features: int
    rank: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, *, factor: jax.Array | None = None, residual: jax.Array | None = None
    ) -> jax.Array:
        """`factor * (x @ kernel + bias) + residual`; factor: [features], which goes into kernel and bias.

        x: [batch, ..., in_features] -> [batch, ..., features].
        """
        kernel = self.weight("kernel", truncated_normal, x.shape[-1], self.features)
        bias = self.weight("bias", nn.initializers.zeros, self.features)
        x = x.astype(self.numerics.dtype)
        if self.rank:
            down = self.weight("lora_down", nn.initializers.he_uniform(), x.shape[-1], self.rank)
            up = self.weight("lora_up", nn.initializers.zeros, self.rank, self.features)
            low = x @ down @ (up if factor is None else up * factor)
            residual = low if residual is None else residual + low
        if factor is not None:
            kernel, bias = kernel * factor, bias * factor
        return ops.dense(x, kernel, bias, residual=residual, native=self.numerics.native)


class Perceptron(Module):
    """Two dense layers `dense1`, `dense2` with GELU in between, the first four times as wide."""

    rank: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, **into: Any) -> jax.Array:
        """x: [batch, ..., features] -> the same shape; into: what the second takes beside, see `Product`."""
        first, second = (
            Product(features, self.rank, numerics=self.numerics, name=name)
            for name, features in (("dense1", 4 * x.shape[-1]), ("dense2", x.shape[-1]))
        )
        return second(ops.gelu(first(x)), **into)


def added(module: Module, x: jax.Array, branch: Any, drop: float, *, scale: jax.Array | None, train: bool) -> jax.Array:
    """`x + scale * branch`, in training without the branch for a part of the examples: stochastic depth.

    branch: (factor, residual) -> outputs, as `Product` takes them; scale: [features], or None for one; drop: the part
    of the examples that goes without, while the others' branches are longer (Huang et al. 2016, arXiv 1603.09382).
    """
    if not (train and drop):
        outputs: jax.Array = branch(factor=scale, residual=x)
        return outputs
    shape = (len(x), *(1,) * (x.ndim - 1))
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - drop, shape)
    return x + jnp.where(kept, branch(factor=scale, residual=None) / (1 - drop), 0)


def merged(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the network without adapters that computes the same: each is added to its kernel.

    params: of a network with them, or without, nested by path.
    """
    leaves = dict(traverse_util.flatten_dict(params))
    adapters = [path for path in leaves if path[-1] == "lora_down"]
    if not adapters:
        return dict(params)
    for path in adapters:
        down, up = leaves.pop(path), leaves.pop((*path[:-1], "lora_up"))
        kernel = (*path[:-1], "kernel")
        leaves[kernel] = leaves[kernel] + jnp.matmul(down, up, precision=lax.Precision.HIGHEST)
    return dict(traverse_util.unflatten_dict(leaves))
