"""Devices that are not here: what they can, and the programs that XLA compiles for them."""

from covidjax.targets.catalog import CHIPS, Target, target_of
from covidjax.targets.compiler import Compiler, Program

__all__ = ["CHIPS", "Compiler", "Program", "Target", "target_of"]
