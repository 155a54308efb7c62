"""Learning rates, and the momentum that goes with them, by the step of a phase."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from covidjax.errors import UserError

SCHEDULES = ("constant", "cosine", "step", "one_cycle", "fastai_one_cycle", "plateau")

# The defaults of torch.optim.lr_scheduler.OneCycleLR.
ONE_CYCLE_INITIAL_DIVISOR = 25.0
ONE_CYCLE_FINAL_DIVISOR = 1e4
ONE_CYCLE_MOMENTA = 0.95, 0.85  # of fastai's `fit_one_cycle`

Schedule = Callable[[ArrayLike], jax.Array]


def learning_rate_schedule(optimizer: Any, total_steps: int, steps_per_epoch: int) -> Schedule:
    """The learning rate of a step, counted from 0, of a phase of `total_steps` steps.

    - 'constant' and 'plateau': `learning_rate`; the plateau's factor is in `Plateau.scale`.
    - 'cosine': linearly from 0 to `learning_rate` over `warmup_epochs`, then half a cosine to 0 at `total_steps`.
    - 'step': times `step_factor` from the first step after each of `step_epochs` finished epochs.
    - 'one_cycle', 'fastai_one_cycle': see `_one_cycle`.

    The result takes Python ints and, under jit, integer arrays, and gives [] float of weak type (it takes the dtype of
    what it multiplies). Raises UserError for a warm-up longer than the phase, and `step_epochs` that do not rise.
    """
    rate = optimizer.learning_rate
    match optimizer.schedule:
        case "constant" | "plateau":
            schedule = optax.constant_schedule(rate)
        case "cosine":
            schedule = _cosine(optimizer, total_steps, steps_per_epoch)
        case "step":
            schedule = _steps(optimizer, steps_per_epoch)
        case "one_cycle" | "fastai_one_cycle":
            low = rate / ONE_CYCLE_INITIAL_DIVISOR
            schedule = _one_cycle(optimizer, total_steps, (low, rate, low / ONE_CYCLE_FINAL_DIVISOR))
        case name:
            raise NotImplementedError(name)
    return lambda step: jnp.asarray(schedule(step))


def _cosine(optimizer: Any, total_steps: int, steps_per_epoch: int) -> Schedule:
    warmup_steps = round(optimizer.warmup_epochs * steps_per_epoch)
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"optimizer.warmup_epochs is {optimizer.warmup_epochs}, {warmup_steps} of {total_steps} steps; it must be "
            "at least 0 and shorter than the phase; lower it or raise epochs"
        )
    if warmup_steps == 0:
        return optax.cosine_decay_schedule(optimizer.learning_rate, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, optimizer.learning_rate, warmup_steps, total_steps)


def _steps(optimizer: Any, steps_per_epoch: int) -> Schedule:
    epochs = tuple(optimizer.step_epochs)
    if not epochs or min(epochs) < 1 or list(epochs) != sorted(set(epochs)):
        raise UserError(f"optimizer.step_epochs is {epochs}; it must be rising whole epochs from 1; set e.g. (30, 60)")
    factors = {epoch * steps_per_epoch: optimizer.step_factor for epoch in epochs}
    return optax.piecewise_constant_schedule(optimizer.learning_rate, factors)


def momentum_schedule(optimizer: Any, total_steps: int) -> Schedule | None:
    """What takes the place of `beta_1` in a step of 'fastai_one_cycle'; None with another schedule.

    It falls from 0.95 to 0.85 while the rate rises, and rises back.
    """
    if optimizer.schedule != "fastai_one_cycle":
        return None
    high, low = ONE_CYCLE_MOMENTA
    return _one_cycle(optimizer, total_steps, (high, low, high))


def _one_cycle(optimizer: Any, total_steps: int, values: tuple[float, float, float]) -> Schedule:
    """Half a cosine from the first of `values` to the second, then half a cosine to the third.

    Of a rate these are peak / 25, peak and (peak / 25) / 1e4, in PyTorch and in fastai 1 (fastai 2 ends at peak / 1e5).
    'one_cycle': torch.optim.lr_scheduler.OneCycleLR with its two phases and the momentum at rest: the peak is at step
    `pct_start * total_steps - 1`, the end at step `total_steps - 1`. Where torch would put the peak before step 0 (a
    run of a few steps) the cycle starts at its peak.
    'fastai_one_cycle': fastai 1.0.61, `callbacks/one_cycle.py`: the peak is at step `int(pct_start * total_steps)`, and
    the end would be at step `total_steps`, which a run no longer takes.
    """
    first, peak, last = values
    if optimizer.schedule == "one_cycle":
        rise, end = max(optimizer.pct_start * total_steps - 1, 0.0), total_steps - 1
    else:
        rise, end = float(int(optimizer.pct_start * total_steps)), total_steps
    fall = end - rise

    def anneal(start: float, end: float, fraction: ArrayLike) -> jax.Array:
        return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0.0, 1.0))) / 2

    def value(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        rising = anneal(first, peak, step / (rise or 1.0))
        falling = anneal(peak, last, (step - rise) / (fall or 1.0))
        return jnp.where(step < rise, rising, falling)

    return value
