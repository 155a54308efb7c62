"""Whether networks of this process use native operations, and why."""

import dataclasses

import jax

from covidjax.errors import UserError
from covidjax.ops import self_check
from covidjax.ops.native import library

CHOICES = ("auto", "xla", "native")  # of config.ops


@dataclasses.dataclass(frozen=True)
class Choice:
    """Whether networks use native operations, and a line that says which and why."""

    native: bool
    note: str


def choose(wanted: str) -> Choice:
    """The choice that `config.ops` comes to in this process. Raises UserError for 'native' where that cannot be."""
    if wanted == "xla":
        return Choice(False, "operations: XLA's, as config.ops says")
    reason = _why_not()
    if reason and wanted == "native":
        raise UserError(f"config.ops is 'native', but {reason}: allowed are auto and xla")
    if reason:
        return Choice(False, f"operations: XLA's; {reason}")
    return Choice(True, "operations: native float32 convolutions (oneDNN, Winograd) where they are faster, else XLA's")


def _why_not() -> str:
    """Why this process cannot use native operations; empty if it can."""
    if jax.default_backend() != "cpu":
        return f"native operations are for a CPU, and the device is a {jax.default_backend()}"
    shim = library.path()
    if not shim.exists():
        return f"native operations are not built for this processor: {library.COMMAND}"
    if reason := library.load(shim):
        return f"the native operations cannot be loaded: {reason}"
    if reason := self_check.wrong():
        return f"the native operations fail their check: {reason}"
    return ""
