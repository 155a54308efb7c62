"""The parameters that train and those that are frozen, by a strategy, and what that costs."""

from covidjax.freeze.plan import BATCH_NORM_MODES, FreezePlan, make_plan
from covidjax.freeze.strategies import STRATEGIES, allowed, default_strategies, gradual_epochs, split_cached
from covidjax.freeze.table import format_table, freeze_table

__all__ = [
    "BATCH_NORM_MODES",
    "STRATEGIES",
    "FreezePlan",
    "allowed",
    "default_strategies",
    "format_table",
    "freeze_table",
    "gradual_epochs",
    "make_plan",
    "split_cached",
]
