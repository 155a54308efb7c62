"""Operations of the networks in oneDNN on a CPU, see README.md; `covidjax.ops` decides where they stand in."""

from covidjax.ops.native.library import CHOICES, Choice, choose

__all__ = ["CHOICES", "Choice", "choose"]
