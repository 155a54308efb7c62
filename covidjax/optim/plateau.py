"""The rule that lowers the learning rate where the loss no longer falls."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Plateau(flax.struct.PyTreeNode):
    """State of the plateau rule: part of the train state and of the checkpoint.

    scale: [] float32, the factor on the rate; best: [] float32, the lowest epoch loss so far; wait: [] int32, epochs
    since then.
    """

    scale: jax.Array
    best: jax.Array
    wait: jax.Array


def plateau_init() -> Plateau:
    """The state before the first epoch: a scale of 1 and no loss seen."""
    return Plateau(
        scale=jnp.ones((), jnp.float32), best=jnp.full((), jnp.inf, jnp.float32), wait=jnp.zeros((), jnp.int32)
    )


def plateau_update(state: Plateau, epoch_loss: ArrayLike, optimizer: Any) -> Plateau:
    """The state after an epoch, by the rule of Keras' ReduceLROnPlateau (mode 'min', cooldown 0).

    After `plateau_patience` epochs whose loss is not below the best by more than `plateau_min_delta`, the rate falls by
    `plateau_factor`, but not below `plateau_min_learning_rate` (of the base rate, before factors of single leaves).
    epoch_loss: [] float. A NaN or infinite loss is no improvement, also in the first epoch, where Keras would take it
    for the best. With another schedule the state is returned as it is. Works under jit, `optimizer` being static.
    """
    if optimizer.schedule != "plateau":
        return state
    loss = jnp.asarray(epoch_loss, jnp.float32)
    min_scale = jnp.float32(optimizer.plateau_min_learning_rate / optimizer.learning_rate)
    improved = loss + optimizer.plateau_min_delta < state.best
    wait = jnp.where(improved, 0, state.wait + 1)
    reduced = ~improved & (wait >= optimizer.plateau_patience) & (state.scale > min_scale)
    return Plateau(
        scale=jnp.where(reduced, jnp.maximum(state.scale * optimizer.plateau_factor, min_scale), state.scale),
        best=jnp.where(improved, loss, state.best),
        wait=jnp.where(reduced, 0, wait),
    )
