"""Optimizers, learning-rate schedules and the plateau rule, as Keras 3 defines them.

`optimizer` in the signatures is the config section of that name, any object with the attributes
name (of OPTIMIZERS), options (of a registered one), learning_rate, momentum and nesterov (sgd only),
beta_1, beta_2 (adam, adamw and adamax), schedule (of SCHEDULES), warmup_epochs (cosine only), pct_start (one_cycle and
fastai_one_cycle), step_epochs and step_factor (step only), weight_decay, clip_norm, plateau_factor, plateau_patience,
plateau_min_delta and plateau_min_learning_rate (plateau only).

A transformation made here gives *unit-rate directions*; the caller moves the parameters, so that the rate can be a
traced value with a static factor per leaf:

    direction, opt_state = tx.update(gradients, opt_state, params)
    params = params - schedule(step) * plateau.scale * factor_of_leaf * direction
"""

from covidjax.optim.plateau import Plateau, plateau_init, plateau_update
from covidjax.optim.rules import OPTIMIZERS, counts_by_leaf, counts_together, optimizer, register_optimizer
from covidjax.optim.schedules import SCHEDULES, learning_rate_schedule, momentum_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Plateau",
    "counts_by_leaf",
    "counts_together",
    "learning_rate_schedule",
    "momentum_schedule",
    "optimizer",
    "plateau_init",
    "plateau_update",
    "register_optimizer",
]
