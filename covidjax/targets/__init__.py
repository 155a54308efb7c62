"""Devices that are not here: what they can, and the programs that XLA compiles for them."""

from covidjax.targets.catalog import CHIPS, Target, target_of
from covidjax.targets.compiler import Compiler
from covidjax.targets.program import Program, largest_batch, predicted_exchange, predicted_floor, usable_bytes

__all__ = [
    "CHIPS",
    "Compiler",
    "Program",
    "Target",
    "largest_batch",
    "predicted_exchange",
    "predicted_floor",
    "target_of",
    "usable_bytes",
]
