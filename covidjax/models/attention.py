"""Self-attention of the positions of a map."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from covidjax.models.layers import Conv, Module, lecun_normal


class SelfAttention(Module):
    """Every position of a map looks at all others: `x + scale * attention(x)`, the identity while scale is zero.

    Zhang et al. 2018 (SAGAN, arXiv 1805.08318) as in fastai: query and key an eighth as wide as the value, no factor
    on their product, no bias, one `scale` [1] that starts at zero. Without fastai's spectral norm, which bounds the
    discriminator of an adversarial pair. Memory grows with (height * width) squared.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, features] -> the same shape."""
        batch, height, width, features = x.shape
        query, key, value = (
            Conv(wide, 1, kernel_init=lecun_normal, numerics=self.numerics, name=f"{role}_conv")(x).reshape(
                batch, height * width, wide
            )
            for role, wide in (("query", features // 8), ("key", features // 8), ("value", features))
        )
        scores = jnp.einsum("bqf,bkf->bqk", query, key)
        weights = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))
        seen = jnp.einsum("bqk,bkf->bqf", weights.astype(self.numerics.dtype), value).reshape(x.shape)
        return x + self.weight("scale", nn.initializers.zeros, 1) * seen
