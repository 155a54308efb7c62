"""Dynamic loss scaling: float16 has no room for small gradients, nor for large ones.

Micikevicius et al. 2018 (arXiv 1710.03740, 3.2): the loss is multiplied before the backward pass, the gradients are
divided behind it, and a step whose gradients overflowed is skipped. Factors and interval are those of PyTorch's
GradScaler, the largest scale is fastai 1's.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

FIRST, SMALLEST, LARGEST = 2.0**15, 1.0, 2.0**24  # powers of two: scaling rounds nothing
GOOD_STEPS = 2000  # in a row, until the scale doubles


@flax.struct.dataclass
class LossScale:
    """The factor on the loss, and what decides it; part of the train state.

    scale: [] float32; good_steps: [] int32, in a row since the scale last changed; skipped_steps: [] int32, of the run.
    """

    scale: jax.Array
    good_steps: jax.Array
    skipped_steps: jax.Array

    def after(self, gradients: Any) -> tuple["LossScale", jax.Array]:
        """The scale of the next step, and whether this one counts: [] bool, false where a gradient is not finite.

        gradients: of the trainable leaves, whatever their scale. At the smallest scale every step counts: what is not
        finite there is no matter of scale.
        """
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients)]))
        counts = finite | (self.scale <= SMALLEST)
        good_steps = jnp.where(finite, self.good_steps + 1, 0)
        grows = good_steps == GOOD_STEPS
        scale = jnp.where(grows, jnp.minimum(2 * self.scale, LARGEST), self.scale)
        scale = jnp.where(finite, scale, jnp.maximum(self.scale / 2, SMALLEST))
        return LossScale(scale, jnp.where(grows, 0, good_steps), self.skipped_steps + ~counts), counts


def fresh(dtype: Any) -> LossScale | None:
    """The state before the first step of a network that computes in `dtype`; None where nothing is scaled."""
    if dtype != jnp.float16:
        return None
    zero = jnp.zeros((), jnp.int32)
    return LossScale(jnp.full((), FIRST, jnp.float32), zero, zero + 0)  # two buffers: the state is donated


def value_and_grad(loss: Callable[..., Any], loss_scale: LossScale | None) -> Callable[..., Any]:
    """`jax.value_and_grad` of a loss with auxiliary outputs, through its multiple where there is a scale.

    The value and the gradients are those of the loss itself.
    """
    if loss_scale is None:
        return jax.value_and_grad(loss, has_aux=True)
    scale = loss_scale.scale

    def scaled(*arguments: Any) -> Any:
        value, others = loss(*arguments)
        return value * scale, (value, others)

    def unscaled(*arguments: Any) -> Any:
        (_, outputs), gradients = jax.value_and_grad(scaled, has_aux=True)(*arguments)
        return outputs, jax.tree.map(lambda gradient: gradient / scale, gradients)

    return unscaled
