"""The state that a training step takes in and gives back."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from covidjax.optim import Plateau
from covidjax.train.loss_scale import LossScale


@flax.struct.dataclass
class StepMetrics:
    """Sums over the steps of an epoch so far; they stay on the device until they are logged.

    A step that is left out, by loss scaling or as `Recipe.skip_nonfinite` has it, is in none of them.
    loss, gradient_norm: float32 sums over steps; correct: float32 over examples, of masks the part of the pixels that
    is right; steps: int32;
    nonfinite_step: int32, the first step whose loss or gradient was not finite, or -1.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    correct: jax.Array
    steps: jax.Array
    nonfinite_step: jax.Array

    @classmethod
    def empty(cls) -> "StepMetrics":
        """Sums over nothing."""
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        # Distinct buffers: the state is donated, and one buffer cannot be donated twice.
        return cls(zero, zero + 0.0, zero + 0.0, none, none - 1)

    def add(self, step: jax.Array, loss: jax.Array, gradient_norm: jax.Array, correct: jax.Array) -> "StepMetrics":
        """The sums with one more step."""
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        first_bad = (self.nonfinite_step < 0) & ~finite
        return StepMetrics(
            loss=self.loss + loss.astype(self.loss.dtype),
            gradient_norm=self.gradient_norm + gradient_norm.astype(jnp.float32),
            correct=self.correct + correct.astype(jnp.float32),
            steps=self.steps + 1,
            nonfinite_step=jnp.where(first_bad, step, self.nonfinite_step),
        )

    def plus(self, later: "StepMetrics") -> "StepMetrics":
        """The sums over these steps and later ones."""
        sums = jax.tree.map(jnp.add, self, later)
        first_bad = jnp.where(self.nonfinite_step < 0, later.nonfinite_step, self.nonfinite_step)
        return dataclasses.replace(sums, nonfinite_step=first_bad)


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; a pytree that is donated to each step and saved in checkpoints.

    step: int32, finished optimizer steps of the whole run
    key: typed PRNG key of the run; a step's randomness is `fold_in(key, step)`
    params, batch_stats: trees keyed by stage, whole whatever the freeze plan
    opt_state: of the trainable leaves only
    average: moving averages, {'params': of the trainable leaves, with holes, 'batch_stats': of the stages on batch
        statistics}, with holes where a decay is 0; None where nothing is averaged
    plateau: scale of the learning rate and what decides it
    loss_scale: None where activations are not float16
    metrics: sums since the epoch began
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    plateau: Plateau
    loss_scale: LossScale | None
    metrics: StepMetrics
