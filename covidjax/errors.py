"""The exceptions that a command ends with in one line: what a person can mend, and a run that was stopped."""


class UserError(Exception):
    """A mistake in a config, a path, a data file or a checkpoint.

    The message is one line: what was wrong, what is allowed, what to do. The commands in `launch/` print it
    without a traceback and end with exit status 2.
    """


class Interrupted(Exception):
    """A run that saved where it stands and ended because SIGTERM asked for it; the message is one line."""
