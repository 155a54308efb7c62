"""The exceptions that a command ends with in one line: what a person can mend, and a run that was stopped."""

import signal
from collections.abc import Iterable

SHOWN = 10  # names in an error or a note; of the others it says how many there are


class UserError(Exception):
    """A mistake in a config, a path, a data file or a checkpoint.

    The message is one line: what was wrong, what is allowed, what to do. The commands in `launch/` print it
    without a traceback and end with exit status 2.
    """


class Interrupted(Exception):
    """A run that saved where it stands and ended because a signal asked for it; the message is one line.

    number: of the signal.
    """

    number: int = signal.SIGTERM


def some_of(names: Iterable[object], between: str = ", ") -> str:
    """The first ten names and how many more there are, for an error or a note."""
    texts = [str(name) for name in names]
    return between.join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
